// Strokes and pictures -> POST /read -> what the network says, sees, and looked at.
"use strict";

const LINE_WIDTH = 0.08; // of the paper's side, as are the strokes' points
const SENT_SIDE = 200; // pixels of a drawing as it is sent: enough for 28, and four times as fast as 400
const MOST_BYTES = Number(document.body.dataset.mostBytes);
const element = (id) => document.getElementById(id);
const canvas = element("canvas");

let strokes = []; // each a list of points [x, y]
let subject = 0; // counts drawings and pictures: an answer about a former one is not shown

// Drawing

function draw(target) {
  const context = target.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, target.width, target.height);
  context.scale(target.width, target.height);
  context.strokeStyle = "#16191d";
  context.lineWidth = LINE_WIDTH;
  context.lineCap = context.lineJoin = "round";
  for (const points of strokes) {
    context.beginPath();
    context.moveTo(...points[0]);
    // Curves between the middles of the pieces, so that a fast stroke has no corners.
    for (let i = 1; i < points.length - 1; i++) {
      const [[x, y], [nextX, nextY]] = points.slice(i, i + 2);
      context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
    }
    context.lineTo(...points.at(-1));
    context.stroke();
  }
  context.resetTransform();
}

function drawOnScreen() {
  const side = Math.round(canvas.clientWidth * devicePixelRatio);
  if (!side) return; // a picture is shown
  if (canvas.width !== side) canvas.width = canvas.height = side;
  element("hint").hidden = strokes.length > 0;
  draw(canvas);
}

function point(event) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  return [(event.clientX - left) / width, (event.clientY - top) / height];
}

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  strokes.push([point(event)]);
  changed();
});

canvas.addEventListener("pointermove", (event) => {
  if (!event.isPrimary || !canvas.hasPointerCapture(event.pointerId)) return;
  if (!strokes.length) return; // cleared during the stroke
  const events = event.getCoalescedEvents?.() ?? []; // unknown to some browsers without https
  strokes.at(-1).push(...(events.length ? events : [event]).map(point));
  changed();
});

function changed() {
  drawOnScreen();
  readDrawing();
}

function clear() {
  subject++;
  strokes = [];
  element("picture").replaceChildren();
  element("picture").hidden = true;
  element("paper").hidden = false;
  drawOnScreen();
  say("");
  showText("");
  showCharacter(null);
}

// Reading

let isReading = false;
let isChanged = false; // since the drawing that is being read was sent

/** Reads what is drawn; if a drawing is being read, then the newest one after it. */
async function readDrawing() {
  isChanged = true;
  if (isReading) return;
  isReading = true;
  while (isChanged && strokes.length) {
    isChanged = false;
    const copy = document.createElement("canvas");
    copy.width = copy.height = SENT_SIDE;
    draw(copy);
    await read(new Promise((resolve) => copy.toBlob(resolve)), "/read?single");
  }
  isReading = false;
}

async function readPicture(file) {
  subject++;
  if (file.size > MOST_BYTES) {
    say(`${file.name}: a picture may have ${MOST_BYTES / 1e6} MB at most`);
    return;
  }
  say("", "Reading …");
  const found = await read(file, "/read", `${file.name}: `);
  if (!found) return;
  clear();
  showText(found.text);
  showPicture(file.name, found);
}

/** Shows what the network reads in a picture, or what is wrong with it; returns what it reads, unless it is too late. */
async function read(picture, url, name = "") {
  const asked = subject;
  let found;
  try {
    const response = await fetch(url, { method: "POST", body: await picture });
    found = await response.json();
  } catch {
    found = { error: "the program does not answer; start it again" };
  }
  if (asked !== subject) return null;
  if (found.error) {
    say(name + found.error);
    if (!name) {
      showText("");
      showCharacter(null);
    }
    return null;
  }
  say("");
  showText(found.text);
  showCharacter(found.characters[0]);
  return found;
}

// Showing

function say(error, heading = "Answer") {
  element("error").textContent = error;
  element("heading").textContent = heading;
}

function showText(text) {
  const answer = element("answer");
  answer.classList.toggle("long", text.length > 1);
  if (answer.textContent !== text) answer.textContent = text; // a screen reader says what is set
}

/** Shows the five most probable names and both images; null: none. */
function showCharacter(character) {
  for (let i = 0; i < 5; i++) {
    const [name, probability] = character?.top[i] ?? ["", 0];
    const [letter, bar, percent] = element("top").children[i].children;
    letter.textContent = name;
    bar.style.setProperty("--share", `${100 * probability}%`);
    percent.textContent = name && `${(100 * probability).toFixed(1)} %`;
  }
  for (const [id, source] of [["image", "image"], ["below", "image"], ["saliency", "saliency"]]) {
    element(id).hidden = !character;
    if (character) element(id).src = character[source];
  }
}

function showPicture(name, found) {
  const { width, height, characters } = found;
  const image = document.createElement("img");
  image.src = found.picture; // as it was read: browsers lack formats, and know no paper behind transparent pixels
  image.alt = name;
  const picture = element("picture");
  picture.style.aspectRatio = `${width} / ${height}`;
  picture.style.maxWidth = `min(34rem, ${(70 * width) / height}vh)`;
  picture.replaceChildren(image);
  const select = (i) => {
    showCharacter(characters[i]);
    picture.querySelectorAll("button").forEach((box, j) => box.setAttribute("aria-pressed", i === j));
    say("", characters.length > 1 ? `Character ${i + 1} of ${characters.length}` : "Answer");
  };
  characters.forEach(({ box: [left, top, right, bottom], top: [[name]] }, i) => {
    const box = document.createElement("button");
    box.setAttribute("aria-label", `Character ${i + 1}: ${name}`);
    for (const [side, share] of Object.entries({ left, top, right: 1 - right, bottom: 1 - bottom })) {
      box.style[side] = `${100 * share}%`;
    }
    for (const event of ["click", "focus", "pointerenter"]) box.addEventListener(event, () => select(i));
    picture.append(box);
  });
  select(0);
  picture.hidden = false;
  element("paper").hidden = true;
}

// What the user does besides drawing

function readFirst(files) {
  if (files.length) readPicture(files[0]);
  else say("that is no file with a picture");
}

element("clear").addEventListener("click", clear);
document.addEventListener("keydown", (event) => event.key === "Escape" && clear());
element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) readPicture(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => readFirst(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  readFirst(event.dataTransfer.files);
});
new ResizeObserver(drawOnScreen).observe(canvas);
