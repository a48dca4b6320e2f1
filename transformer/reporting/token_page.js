// DATA: the vocabulary size; name, id, nats, rank and most likely [id, probability] of each token; their names.
const tokens = [...document.querySelectorAll(".token")];
const told = document.getElementById("told");
let chosen = 0;
let pinned = false;

function element(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function tell(number) {
  const token = DATA.tokens[number];
  const line = document.createElement("p");
  line.append(element("b", `“${token.name}”`), ` token ${number}, id ${token.id}, in the vocabulary ${token.raw}`);
  if (token.begins) {
    told.replaceChildren(line, element("p", "It precedes the text, and is not scored."));
    return;
  }
  const probability = Math.exp(-token.nats);
  const part = probability < 0.0001 ? probability.toExponential(1) : `${(100 * probability).toPrecision(3)} %`;
  const rank = token.rank.toLocaleString("en");
  const of = DATA.vocabulary.toLocaleString("en");
  const numbers = element("p", `${token.nats.toFixed(2)} nats · probability ${part} · rank ${rank} of ${of}`);
  const list = document.createElement("ol");
  for (const [id, likely] of token.likeliest) {
    const item = element("li", `${DATA.names[id]} ${(100 * likely).toFixed(1)} %`, id === token.id ? "own" : "");
    item.title = `id ${id}`;
    list.append(item);
  }
  told.replaceChildren(line, numbers, element("p", "Most likely here:"), list);
}

function choose(number) {
  tokens[chosen].classList.remove("chosen");
  tokens[chosen].tabIndex = -1;
  chosen = number;
  tokens[chosen].classList.add("chosen");
  tokens[chosen].tabIndex = 0;
  tell(number);
}

tokens.forEach((one, number) => {
  const nats = DATA.tokens[number].nats;
  one.title = nats === undefined ? "given" : `${nats.toFixed(2)} nats`;
  one.setAttribute("aria-label", `${DATA.tokens[number].name}, ${one.title}`);
  one.addEventListener("mouseenter", () => pinned || choose(number));
  one.addEventListener("click", () => {
    pinned = !(pinned && chosen === number); // a second click lets the pointer choose again
    choose(number);
  });
});
document.getElementById("text").addEventListener("keydown", (event) => {
  const last = tokens.length - 1;
  const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -last, End: last };
  if (!(event.key in moves)) return;
  event.preventDefault();
  choose(Math.min(last, Math.max(0, chosen + moves[event.key])));
  tokens[chosen].focus();
});
document.querySelectorAll("input[name=colour]").forEach((radio) => {
  radio.addEventListener("change", () => {
    document.getElementById("text").classList.toggle("boundaries", radio.value === "boundaries" && radio.checked);
  });
});
