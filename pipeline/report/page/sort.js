"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const number = (row) => row.cells[place].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [number(a), number(b)];
        const numeric = head.classList.contains("n");
        if (numeric && (x === undefined || y === undefined)) return (x === undefined) - (y === undefined);
        const order = numeric ? x - y : a.cells[place].textContent.localeCompare(b.cells[place].textContent);
        return down && numeric ? -order : down ? order : numeric ? order : -order;
      });
      body.append(...rows);
    });
  });
}
