'use strict';
(() => {
  const find = (query, root = document) => root.querySelector(query);
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const store = document.getElementById('store');
  const byId = (id) =>
    document.getElementById(id) || (store && store.content.getElementById(id));

  // A picture that the page shows several times is written once; the others name the first.
  function fill(root) {
    for (const slot of all('[data-same]', root)) {
      const first = byId(slot.dataset.same);
      const image = first.cloneNode();
      image.removeAttribute('id');
      image.className = slot.className;
      image.alt = slot.dataset.alt;
      slot.replaceWith(image);
    }
  }

  function reveal() {
    all('.script, .filter, .control').forEach((each) => (each.hidden = false));
  }

  // Tables: a button in the head of each column sorts by it; a second press sorts the other way.
  function value(row, column) {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text);
    return text !== '' && !Number.isNaN(number) ? number : text;
  }

  const isMissing = (x) => x === '' || x === '–' || x === 'None' || x === 'nan';

  function compare(a, b) {
    if (typeof a === 'number' && typeof b === 'number') return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function sort(table, head) {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    all('thead th', table).forEach((each) => each.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row, head.cellIndex), row]);
    rows.sort(([a], [b]) => {
      if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
      return up ? compare(a, b) : compare(b, a);
    });
    body.append(...rows.map(([, row]) => row));
  }

  function makeSortable(table) {
    for (const head of all('thead th', table)) {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...head.childNodes);
      button.addEventListener('click', () => sort(table, head));
      head.append(button);
    }
  }

  // Filters: what has none of the words in the names of its classes is hidden.
  function makeFilter(box) {
    const items = [...document.getElementById(box.dataset.filter).children];
    const input = find('input', box);
    input.addEventListener('input', () => {
      const word = input.value.trim().toLowerCase();
      for (const item of items) item.hidden = !item.dataset.words.toLowerCase().includes(word);
      const left = items.filter((item) => !item.hidden).length;
      find('output', box).textContent = word ? `${left} of ${items.length}` : '';
    });
  }

  // The confusion matrix: one cell is in the order of the Tab key, arrows move to others.
  const panel = document.getElementById('cell');
  let opener = null;

  function close() {
    panel.hidden = true;
    find('ul', panel).replaceChildren();
    if (opener) {
      opener.removeAttribute('aria-expanded');
      opener.focus();
    }
    opener = null;
  }

  function open(button) {
    if (opener) opener.removeAttribute('aria-expanded');
    opener = button;
    button.setAttribute('aria-expanded', 'true');
    const numbers = button.dataset.examples.split(' ');
    const cards = numbers.map((number) => {
      const card = byId(`image-${number}`).cloneNode(true);
      card.hidden = false;
      [card, ...all('[id]', card)].forEach((each) => each.removeAttribute('id'));
      fill(card);
      return card;
    });
    find('ul', panel).replaceChildren(...cards);
    document.getElementById('cell-title').textContent = button.getAttribute('aria-label');
    const count = Number(button.dataset.count);
    document.getElementById('cell-note').textContent =
      numbers.length < count ? `${numbers.length} of ${count.toLocaleString('en')} shown` : '';
    panel.hidden = false;
    document.getElementById('cell-title').focus();
  }

  function move(grid, event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key];
    const row = grid.findIndex((cells) => cells.includes(event.target));
    if (!step || row < 0) return;
    event.preventDefault();
    let [r, c] = [row, grid[row].indexOf(event.target)];
    do [r, c] = [r + step[0], c + step[1]];
    while (grid[r] && c in grid[r] && !grid[r][c]);
    const next = grid[r] && grid[r][c];
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  function makeMatrix(table) {
    const grid = [...table.tBodies[0].rows].map((row) =>
      all('td', row).map((cell) => find('button', cell)),
    );
    table.addEventListener('keydown', (event) => move(grid, event));
    table.addEventListener('click', (event) => {
      const button = event.target.closest('button');
      if (!button) return;
      grid.flat().forEach((each) => each && (each.tabIndex = -1));
      button.tabIndex = 0;
      open(button);
    });
  }

  function makeMap(select) {
    select.addEventListener('change', () => {
      const map = find('svg.map');
      map.classList.toggle('chosen', select.value !== '');
      for (const group of all('g.points', map)) {
        group.classList.toggle('on', group.dataset.class === select.value);
      }
    });
  }

  // The contents: the section that is read is marked.
  function follow() {
    const links = new Map(all('nav.contents a').map((a) => [a.getAttribute('href').slice(1), a]));
    const seen = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          if (!isIntersecting) continue;
          links.forEach((a) => a.removeAttribute('aria-current'));
          links.get(target.id).setAttribute('aria-current', 'true');
        }
      },
      { rootMargin: '-10% 0px -80% 0px' },
    );
    all('main > section').forEach((each) => links.has(each.id) && seen.observe(each));
  }

  fill(document);
  reveal();
  all('table[data-sort]').forEach(makeSortable);
  all('.filter').forEach(makeFilter);
  all('table.matrix').forEach(makeMatrix);
  all('#map-class').forEach(makeMap);
  if (panel) {
    find('.close', panel).addEventListener('click', close);
    document.addEventListener('keydown', (e) => e.key === 'Escape' && !panel.hidden && close());
  }
  follow();
  addEventListener('beforeprint', () => all('details').forEach((each) => (each.open = true)));
})();
