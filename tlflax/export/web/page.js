import * as ort from './ort.wasm.bundle.min.mjs';

const SHOWN = 10; // classes at first
const MOST_PIXELS = 16_000_000; // of an image that the model resizes; what a phone has memory for

const find = (id) => document.getElementById(id);
let session, metadata, classes, latest = 0, queue = Promise.resolve();

function say(text, bad = false) {
  find('status').textContent = text;
  find('status').classList.toggle('bad', bad);
}

const reason = (error) => String(error?.message ?? error).split('\n')[0];

async function get(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status})`);
  return response;
}

async function bytes(name) {
  const response = await get(name);
  const size = Number(response.headers.get('Content-Length')) || 0;
  const bar = find('progress');
  bar.hidden = false;
  if (size) bar.max = size;
  const parts = [];
  let done = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { value, done: end } = await reader.read();
    if (end) break;
    parts.push(value);
    done += value.length;
    if (size) bar.value = Math.min(done, size);
    const of = size ? ` of ${(size / 1e6).toFixed(1)}` : '';
    say(`Loading the model: ${(done / 1e6).toFixed(1)}${of} MB.`);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function load() {
  say('Loading the model.');
  metadata = await (await get('metadata.json')).json();
  classes = JSON.parse(metadata.classes);
  const few = classes.length <= SHOWN ? `: ${classes.join(', ')}` : '';
  find('about').textContent =
    `Tells ${classes.length} classes apart${few}. Images stay in this browser.`;
  ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  ort.env.wasm.proxy = true; // in a worker, so that the page answers meanwhile
  ort.env.logLevel = 'error';
  const model = await bytes('classifier.onnx');
  say('Preparing the model.');
  session = await ort.InferenceSession.create(model, { executionProviders: ['wasm'] });
  find('progress').hidden = true;
  find('file').disabled = false;
  say('Ready: choose an image.');
}

// The pixels that the model takes, on the canvas that shows them.
function draw(image) {
  const pixels = image.width * image.height;
  if (pixels > Number(metadata.max_pixels ?? Infinity)) {
    throw new Error(`it has ${pixels} pixels, more than the classifier accepts`);
  }
  const ratio = Math.min(1, Math.sqrt(MOST_PIXELS / pixels));
  const [width, height] = [image.width, image.height].map(
    (side) => Math.max(1, Math.floor(side * ratio)));
  const canvas = find('seen');
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d', { willReadFrequently: true, colorSpace: 'srgb' });
  context.imageSmoothingQuality = 'high';
  context.fillStyle = `rgb(${JSON.parse(metadata.background).join(',')})`; // behind transparency
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

function tensor({ data, width, height }) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    rgb[to] = data[from];
    rgb[to + 1] = data[from + 1];
    rgb[to + 2] = data[from + 2];
  }
  return new ort.Tensor('uint8', rgb, [1, height, width, 3]);
}

async function decode(file) {
  try {
    return await createImageBitmap(file, {
      colorSpaceConversion: 'none', premultiplyAlpha: 'none', imageOrientation: 'from-image',
    });
  } catch {
    throw new Error('it is not an image that this browser can read');
  }
}

async function classify(file, number) {
  if (number !== latest) return; // another was chosen meanwhile
  say(`Classifying ${file.name}.`);
  try {
    const image = await decode(file);
    const input = tensor(draw(image));
    image.close();
    const began = performance.now();
    const { probabilities } = await session.run({ image: input });
    const seconds = (performance.now() - began) / 1000;
    if (number !== latest) return;
    find('name').textContent = file.name;
    const best = show([...probabilities.data]);
    say(`${best} Computed in ${seconds.toFixed(2)} s.`);
  } catch (error) {
    find('result').hidden = true;
    say(`${file.name} cannot be classified: ${reason(error)}.`, true);
  }
}

// It is 0 or 100 % only where it is exactly so.
function percent(share) {
  const text = (100 * share).toFixed(1);
  if (text === '100.0' && share < 1) return '> 99.9 %';
  if (text === '0.0' && share > 0) return '< 0.1 %';
  return `${text} %`;
}

function row(name, share) {
  const line = document.createElement('tr');
  const head = document.createElement('th');
  const label = document.createElement('bdi');
  const bar = document.createElement('span');
  const cell = document.createElement('td');
  const value = document.createElement('data');
  head.scope = 'row';
  label.textContent = name;
  bar.className = 'bar';
  bar.style.width = `${100 * share}%`;
  value.value = share;
  value.textContent = percent(share);
  head.append(label, bar);
  cell.append(value);
  line.append(head, cell);
  return line;
}

function show(probabilities) {
  const order = probabilities.map((share, index) => [share, index]).sort(([a], [b]) => b - a);
  const rows = order.map(([share, index]) => row(classes[index], share));
  rows.slice(SHOWN).forEach((line) => { line.hidden = true; });
  find('answers').replaceChildren(...rows);
  find('more').hidden = rows.length <= SHOWN;
  find('more').textContent = `Show all ${rows.length} classes`;
  find('result').hidden = false;
  const [share, index] = order[0];
  return `${classes[index]}, ${percent(share)}.`;
}

function choose(files) {
  const file = files?.[0];
  if (!file || !session) return;
  const number = ++latest;
  queue = queue.then(() => classify(file, number));
}

find('more').addEventListener('click', () => {
  for (const line of find('answers').rows) line.hidden = false;
  find('more').hidden = true;
});
find('file').addEventListener('change', (event) => choose(event.target.files));
for (const [name, over] of [['dragover', true], ['dragleave', false], ['drop', false]]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle('over', over);
    if (name === 'drop') choose(event.dataTransfer.files);
  });
}

load().catch((error) => {
  find('progress').hidden = true;
  const hint = location.protocol === 'file:' ? ' Open the page through a web server.' : '';
  say(`The model cannot be loaded: ${reason(error)}.${hint}`, true);
});
