// One pair at a time, in an order and with sides that this browser draws. Answers are kept in the
// browser's storage until they are saved to a file.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const place = "worldr1-study-" + data.study;
  const CHOICES = [["left", "Left"], ["same", "No difference"], ["right", "Right"]];
  const element = (id) => document.getElementById(id);

  function below(count) {
    return crypto.getRandomValues(new Uint32Array(1))[0] % count;
  }
  function shuffled(items) {
    const copy = [...items];
    for (let i = copy.length - 1; i > 0; i--) {
      const j = below(i + 1);
      [copy[i], copy[j]] = [copy[j], copy[i]];
    }
    return copy;
  }
  function begin() {
    const bytes = [...crypto.getRandomValues(new Uint8Array(8))];
    return {
      study: data.study,
      participant: bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(""),
      at: -1,
      answers: shuffled(data.pairs).map((pair) => {
        const [left, right] = shuffled(pair.videos);
        return { pair: pair.id, left, right, choices: {}, seconds: 0 };
      }),
    };
  }
  // A page opened from a file may be denied storage; the study then lives as long as the page.
  function restore() {
    try { return JSON.parse(localStorage.getItem(place)); } catch { return null; }
  }
  function keep() {
    try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* see restore */ }
  }

  const state = restore() ?? begin();
  const pairs = new Map(data.pairs.map((pair) => [pair.id, pair]));
  const urls = new Map();
  let shown = 0;

  function url(token) {
    if (!urls.has(token)) {
      const bytes = Uint8Array.from(atob(data.videos[token]), (char) => char.charCodeAt(0));
      urls.set(token, URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })));
    }
    return urls.get(token);
  }
  function complete(answer) {
    return pairs.get(answer.pair).questions.every((name) => answer.choices[name]);
  }
  function show() {
    const total = state.answers.length;
    element("welcome").hidden = state.at >= 0;
    element("pair").hidden = state.at < 0 || state.at >= total;
    element("done").hidden = state.at < total;
    for (const side of ["left", "right"]) element(side).pause();
    if (element("pair").hidden) return;
    const answer = state.answers[state.at];
    const pair = pairs.get(answer.pair);
    element("count").textContent = `${state.at + 1} of ${total}`;
    element("bar").value = state.at / total;
    element("prompt").textContent = "“" + pair.prompt + "”";
    element("back").disabled = state.at === 0;
    element("questions").replaceChildren(...pair.questions.map((name) => question(name, answer)));
    element("next").disabled = !complete(answer);
    play(answer);
    shown = performance.now();
  }
  async function play(answer) {
    const videos = ["left", "right"].map((side) => {
      element(side).src = url(answer[side]);
      return element(side);
    });
    await Promise.all(videos.map((video) => new Promise((ready) => {
      video.addEventListener("loadeddata", ready, { once: true });
    })));
    for (const video of videos) {
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  }
  function question(name, answer) {
    const field = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = data.questions[name];
    const choices = document.createElement("div");
    choices.className = "choices";
    for (const [side, title] of CHOICES) {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name, value: side });
      const token = side === "same" ? "same" : answer[side];
      input.checked = answer.choices[name] === token;
      input.onchange = () => choose(answer, name, token);
      const text = document.createElement("span");
      text.textContent = title;
      label.append(input, text);
      choices.append(label);
    }
    field.append(legend, choices);
    return field;
  }
  function choose(answer, name, token) {
    answer.choices[name] = token;
    element("next").disabled = !complete(answer);
    keep();
  }
  function go(step) {
    if (state.at >= 0 && state.at < state.answers.length) {
      state.answers[state.at].seconds += (performance.now() - shown) / 1000;
    }
    state.at += step;
    keep();
    show();
  }
  function save() {
    const { study, participant, answers } = state;
    const text = JSON.stringify({ study, participant, answers }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `answers-${study}-${participant}.json`;
    link.click();
    element("next-person").hidden = false;
  }
  function forget() {
    try { localStorage.removeItem(place); } catch { /* see restore */ }
    location.reload();
  }
  function key(event) {
    if (element("pair").hidden) return;
    const side = { 1: "left", 2: "same", 3: "right" }[event.key];
    const answer = state.answers[state.at];
    if (side) {
      const open = pairs.get(answer.pair).questions.find((name) => !answer.choices[name]);
      if (open) document.querySelector(`input[name="${open}"][value="${side}"]`).click();
    } else if (event.key === "Enter" && complete(answer)) {
      event.preventDefault();
      go(1);
    }
  }

  element("start").onclick = () => go(1);
  element("next").onclick = () => go(1);
  element("back").onclick = () => go(-1);
  element("save").onclick = save;
  element("another").onclick = forget;
  document.addEventListener("keydown", key);
  show();
})();
