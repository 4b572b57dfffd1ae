"""From pictures as people make them to answers: pictures, characters, a network with its weights."""
