"""From pictures as people make them to images as the data sets have them: ink, characters, 28 x 28 pixels."""
