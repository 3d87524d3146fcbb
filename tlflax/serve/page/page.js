'use strict';
const MOST = 10;
const at = (id) => document.getElementById(id);
const shown = {};  // addresses of pictures, by the id of their element
let model = null;
let current = new AbortController();

function percent(p) {
  return `${(100 * p).toFixed(p < 0.0995 ? 2 : 1)} %`;
}

async function answer(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error('The server does not answer.');
  }
  if (reply.ok) return reply;
  let detail = `The server answers with status ${reply.status}.`;
  try {
    detail = (await reply.json()).detail || detail;
  } catch { /* not JSON */ }
  throw new Error(detail);
}

function show(id, blob, alt) {
  if (shown[id]) URL.revokeObjectURL(shown[id]);
  shown[id] = URL.createObjectURL(blob);
  at(id).alt = alt;
  at(id).src = shown[id];
}

function row(each) {
  const line = document.createElement('tr');
  const name = document.createElement('th');
  name.scope = 'row';
  const text = document.createElement('bdi');
  text.textContent = each.class;
  name.append(text);
  const value = document.createElement('td');
  value.className = 'right';
  value.textContent = percent(each.probability);
  const cell = document.createElement('td');
  cell.className = 'wide';
  cell.setAttribute('aria-hidden', 'true');
  const track = document.createElement('span');
  track.className = 'track';
  const bar = document.createElement('span');
  bar.className = 'bar';
  bar.style.width = `${100 * each.probability}%`;
  track.append(bar);
  cell.append(track);
  line.append(name, value, cell);
  return line;
}

function tell(found, file) {
  at('result-title').textContent = `${found.label}: ${percent(found.probability)}`;
  at('classes').replaceChildren(...found.top.map(row));
  const left = model ? model.classes.length - found.top.length : 0;
  at('more').textContent = left > 0 ? `${left} less probable classes are not shown.` : '';
  show('picture', file, `The image ${file.name || 'that was pasted'}`);
  at('result').hidden = false;
}

async function heat(file, label, signal) {
  at('heat').hidden = true;
  if (model && !model.heat_maps) return;
  const reply = await answer('heat_map', { method: 'POST', body: file, signal });
  show('map', await reply.blob(), `Heat map: the bright parts speak for ${label}`);
  at('map-caption').textContent = `What speaks for ${label}`;
  at('heat').hidden = false;
}

async function classify(file) {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  at('problem').textContent = '';
  at('state').textContent = 'Classifying …';
  try {
    const options = { method: 'POST', body: file, signal };
    const found = await (await answer(`predict?top_k=${MOST}`, options)).json();
    tell(found, file);
    at('state').textContent = `${found.label}, ${percent(found.probability)}`;
    await heat(file, found.label, signal);
  } catch (error) {
    if (error.name === 'AbortError') return;
    at('state').textContent = '';
    at('problem').textContent = error.message;
  }
}

function first(files) {
  if (files && files.length) classify(files[0]);
}

// Failed pictures of the browser, such as TIFF: the heat map still shows what the classifier sees.
at('picture').addEventListener('error', () => { at('own').hidden = true; });
at('picture').addEventListener('load', () => { at('own').hidden = false; });
at('file').addEventListener('change', (event) => {
  first(event.target.files);
});
for (const name of ['dragenter', 'dragover']) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at('drop').classList.add('over');
  });
}
document.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) at('drop').classList.remove('over');
});
document.addEventListener('drop', (event) => {
  event.preventDefault();
  at('drop').classList.remove('over');
  first(event.dataTransfer.files);
});
document.addEventListener('paste', (event) => first(event.clipboardData.files));

answer('model').then(async (reply) => {
  model = await reply.json();
  const names = model.classes.slice(0, MOST).join(', ');
  const more = model.classes.length > MOST ? ' …' : '';
  at('about').textContent = `${model.classes.length} classes: ${names}${more}`;
}).catch((error) => { at('problem').textContent = error.message; });
