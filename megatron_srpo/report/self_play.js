"use strict";
(() => {
  const root = document.getElementById("nearest");
  if (!root) return;
  const $ = (id) => document.getElementById(id);
  const cards = [...root.querySelectorAll("article")];
  const place = cards[0].parentElement;
  const words = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const orders = {
    "as listed": (a, b) => a.dataset.place - b.dataset.place,
    "nearest in skill first": (a, b) => b.dataset.cosine - a.dataset.cosine,
    "farthest in skill first": (a, b) => a.dataset.cosine - b.dataset.cosine,
    "one skill in other words first": (a, b) =>
      b.dataset.cosine - b.dataset.bleu - (a.dataset.cosine - a.dataset.bleu),
  };

  function update() {
    const iteration = $("near-iteration").value;
    const sought = $("near-words").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const card of cards) {
      const fits = (!iteration || iteration === card.dataset.iteration) && sought.every((word) => words.get(card).includes(word));
      card.hidden = !fits;
      count += fits;
    }
    $("near-count").textContent = count ? `${count} of ${cards.length}` : "none fits";
  }

  function order() {
    place.replaceChildren(...cards.toSorted(orders[$("near-order").value]));
  }

  $("near-iteration").add(new Option("all", ""));
  for (const number of new Set(cards.map((card) => card.dataset.iteration))) $("near-iteration").add(new Option(number, number));
  for (const name of Object.keys(orders)) $("near-order").add(new Option(name, name));
  $("near-iteration").addEventListener("change", update);
  $("near-order").addEventListener("change", order);
  $("near-words").addEventListener("input", update);
  $("near-controls").hidden = false;
  update();
})();
