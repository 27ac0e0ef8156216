// Filters the cases. Where scripts do not run, all of them are shown.
"use strict";
{
  const form = document.querySelector("form.filter");
  const cases = [...document.querySelectorAll(".case")];
  const galleries = [...document.querySelectorAll(".gallery")];

  const filter = () => {
    const { phrase, system, kind, target, found, iou } = form.elements;
    const sought = phrase.value.trim().toLowerCase();
    const allows = (control, value) => !control || !control.value || control.value === value;
    const fits = (item) =>
      item.querySelector(".phrase").textContent.toLowerCase().includes(sought) &&
      allows(system, item.dataset.system) &&
      allows(kind, item.dataset.kind) &&
      allows(target, item.dataset.target) &&
      allows(found, item.dataset.found) &&
      Number(item.dataset.iou) <= Number(iou.value);

    for (const item of cases) item.hidden = !fits(item);
    for (const gallery of galleries) gallery.hidden = !gallery.querySelector(".case:not([hidden])");
    const shown = cases.filter((item) => !item.hidden).length;
    form.elements.limit.value = Number(iou.value).toFixed(2);
    form.elements.count.value = `${shown} of ${cases.length}`;
    document.querySelector(".nothing").hidden = shown > 0;
  };

  if (form) {
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    // The fields are empty only after the event.
    form.addEventListener("reset", () => setTimeout(filter));
    // A reloaded page may keep what was chosen before.
    filter();
  }
}
