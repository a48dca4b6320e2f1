// DATA: layers, heads, names of the tokens, weights as base64 of 16-bit numbers: the lower triangles, row by row.
const size = DATA.names.length;
const bytes = Uint8Array.from(atob(DATA.weights), (letter) => letter.charCodeAt(0));
const packed = new DataView(bytes.buffer);
const triangle = (size * (size + 1)) / 2;
const chosen = { layer: 0, head: 0, token: size - 1 };
const byId = (id) => document.getElementById(id);
const tokens = [...document.querySelectorAll(".token")];
const buttons = [...document.querySelectorAll("#heads button")];

// The attention weight of `query` to `key`, from 0 to 1.
function weight(layer, head, query, key) {
  if (key > query) return 0;
  const place = (layer * DATA.heads + head) * triangle + (query * (query + 1)) / 2 + key;
  return packed.getUint16(2 * place, true) / 65535;
}

const percent = (part) => `${(100 * part).toFixed(part < 0.1 ? 2 : 1)} %`;

// The opacity is the square root of the weight, so that small weights are visible.
function draw(canvas, layer, head) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(size, size);
  const probe = getComputedStyle(document.documentElement).getPropertyValue("--blue").trim();
  const colour = [1, 3, 5].map((start) => parseInt(probe.slice(start, start + 2), 16));
  for (let query = 0; query < size; query++) {
    for (let key = 0; key <= query; key++) {
      const at = 4 * (query * size + key);
      colour.forEach((value, i) => (picture.data[at + i] = value));
      picture.data[at + 3] = 255 * Math.sqrt(weight(layer, head, query, key));
    }
  }
  context.putImageData(picture, 0, 0);
}

const direction = () => document.querySelector("input[name=direction]:checked").value;

// The weight between the chosen token and another, in the chosen direction.
function between(other) {
  const { layer, head, token } = chosen;
  return direction() === "from" ? weight(layer, head, token, other) : weight(layer, head, other, token);
}

function say(query, key) {
  const part = weight(chosen.layer, chosen.head, query, key);
  const target = query === key ? "itself" : `“${DATA.names[key]}” (token ${key})`;
  byId("told").textContent = `“${DATA.names[query]}” (token ${query}) attends to ${target}: ${percent(part)}`;
}

function show() {
  const { layer, head, token } = chosen;
  byId("chosen").textContent = `Layer ${layer + 1}, head ${head + 1}`;
  for (const button of buttons) {
    const same = Number(button.dataset.layer) === layer && Number(button.dataset.head) === head;
    button.setAttribute("aria-pressed", String(same));
  }
  const from = direction() === "from";
  const parts = tokens.map((_, other) => between(other));
  tokens.forEach((element, other) => {
    element.style.setProperty("--w", (70 * Math.sqrt(parts[other])).toFixed(1));
    element.classList.toggle("chosen", other === token);
    element.classList.toggle("later", from ? other > token : other < token);
    element.tabIndex = other === token ? 0 : -1;
    element.title = `token ${other}: ${percent(parts[other])}`;
    element.setAttribute("aria-label", `${DATA.names[other]}, ${percent(parts[other])}`);
  });
  const order = parts.map((part, other) => [part, other]).sort((a, b) => b[0] - a[0]).slice(0, 8);
  byId("most").replaceChildren(...order.filter(([part]) => part > 0).map(([part, other]) => {
    const row = document.createElement("tr");
    const cells = [DATA.names[other], "", percent(part)].map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    });
    cells[0].dir = "auto";
    cells[1].className = "bar";
    const bar = document.createElement("i");
    bar.style.width = `${100 * part}%`;
    cells[1].append(bar);
    row.append(...cells);
    return row;
  }));
  draw(byId("map"), layer, head);
}

function choose(change) {
  Object.assign(chosen, change);
  show();
}

// The arrow keys move along the text.
byId("text").addEventListener("keydown", (event) => {
  const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -size, End: size };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const token = Math.min(size - 1, Math.max(0, chosen.token + moves[event.key]));
  choose({ token });
  tokens[token].focus();
  byId("told").textContent = `“${DATA.names[token]}” (token ${token}) is chosen`;
});
tokens.forEach((element, other) => {
  element.addEventListener("click", () => choose({ token: other }));
  element.addEventListener("mouseenter", () => {
    if (direction() === "from") say(chosen.token, other);
    else say(other, chosen.token);
  });
});
for (const button of buttons) {
  button.addEventListener("click", () => {
    choose({ layer: Number(button.dataset.layer), head: Number(button.dataset.head) });
  });
}
document.querySelectorAll("input[name=direction]").forEach((radio) => radio.addEventListener("change", show));

// On the large canvas the pointer and the arrow keys select a weight.
const spot = { query: size - 1, key: 0 };
const map = byId("map");
map.addEventListener("pointermove", (event) => {
  const box = map.getBoundingClientRect();
  const place = (part, whole) => Math.min(size - 1, Math.max(0, Math.floor((part / whole) * size)));
  spot.query = place(event.clientY - box.top, box.height);
  spot.key = place(event.clientX - box.left, box.width);
  say(spot.query, spot.key);
});
map.addEventListener("click", () => choose({ token: spot.query }));
map.addEventListener("keydown", (event) => {
  const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const [down, across] = moves[event.key];
  spot.query = Math.min(size - 1, Math.max(0, spot.query + down));
  spot.key = Math.min(size - 1, Math.max(0, spot.key + across));
  say(spot.query, spot.key);
});

function drawAll() {
  for (const button of buttons) {
    draw(button.firstChild, Number(button.dataset.layer), Number(button.dataset.head));
  }
  show();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
