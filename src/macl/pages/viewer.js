"use strict";
// A case's volume on niivue: the scan, and over it the truth, a prediction, or where they differ.

const DIFFERENCES = [["Missed", "#ff5a4f"], ["Invented", "#35c4f0"], ["Another class", "#f5e663"]];
const LAYERS = ["scan", "truth", "prediction", "difference"];

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

let able;
function canShowVolumes() {
  able ??= "DecompressionStream" in window
    && document.createElement("canvas").getContext("webgl2") !== null;
  return able;
}

let library;
function loadLibrary() {
  library ??= inflate(document.getElementById("niivue").textContent).then(bytes => {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(bytes);
    document.head.append(script);
  });
  return library;
}

// 1 where a structure was missed, 2 where one was invented, 3 where it is another, 0 elsewhere.
function differenceOf(truth, prediction) {
  return truth.map((label, at) => {
    const predicted = prediction[at];
    return label === predicted ? 0 : predicted === 0 ? 1 : label === 0 ? 2 : 3;
  });
}

// The voxel at which to open: in the slice across `axis` that counts most, at its centre of mass.
function fullestPlace(counted, size, axis) {
  const [columns, rows] = size;
  const perSlice = new Uint32Array(size[axis]);
  const sums = Array.from(perSlice, () => [0, 0, 0]);
  for (let at = 0; at < counted.length; at++) {
    if (!counted[at]) continue;
    const line = Math.floor(at / columns);
    const place = [at % columns, line % rows, Math.floor(line / rows)];
    perSlice[place[axis]]++;
    place.forEach((index, of) => { sums[place[axis]][of] += index; });
  }
  const fullest = perSlice.indexOf(Math.max(...perSlice));
  return perSlice[fullest]
    ? sums[fullest].map(sum => Math.round(sum / perSlice[fullest]))
    : size.map(length => Math.floor(length / 2));
}

function lookUpTable(colours) {
  const channel = start =>
    [0, ...colours.map(colour => parseInt(colour.slice(start, start + 2), 16))];
  const opaque = [0, ...colours.map(() => 255)];
  return { R: channel(1), G: channel(3), B: channel(5), A: opaque, labels: opaque.map(String) };
}

class Viewer {
  // `onMove` is called with the slice in view, from 0, and how many there are.
  constructor(canvas, onMove) {
    this.canvas = canvas;
    this.onMove = onMove;
    this.layer = "prediction";
    this.opacity = 0.5;
    this.view = null;
  }

  // Of calls that overlap, the last one wins.
  async show(volume, run) {
    const turn = this.turn = (this.turn ?? 0) + 1;
    await loadLibrary();
    this.starting ??= this.start();
    const niivue = this.niivue = await this.starting;
    const bytes = await inflate(volume.data);
    const voxels = volume.size.reduce((product, length) => product * length);
    const part = number => bytes.slice(number * voxels, (number + 1) * voxels);
    const [image, truth, prediction] = [part(0), part(1), part(2 + volume.runs.indexOf(run))];
    const difference = differenceOf(truth, prediction);
    const colours = volume.classes.map(([, colour]) => colour);
    const tables = [null, colours, colours, DIFFERENCES.map(([, colour]) => colour)];
    const layers = await Promise.all([image, truth, prediction, difference].map(
      (array, at) => this.layerOf(volume, array, LAYERS[at], tables[at])));
    if (turn !== this.turn) return;
    // Set all but the last, and add that: each addition draws all volumes again.
    niivue.volumes = layers.slice(0, -1);
    niivue.addVolume(layers.at(-1));
    this.size = volume.size;
    this.across = volume.across;
    const wrong = difference.some(label => label) ? difference : truth;
    const place = fullestPlace(wrong, volume.size, volume.across);
    this.niivue.scene.crosshairPos = place.map((index, axis) => (index + 0.5) / this.size[axis]);
    this.setView(this.view === "all" ? "all" : String(volume.across));
    this.setLayer(this.layer, this.opacity);
  }

  async start() {
    const niivue = new globalThis.niivue.Niivue({
      isRadiologicalConvention: true, multiplanarShowRender: 0,
      crosshairColor: [1, 1, 1, 1], dragAndDropEnabled: false, loadingText: "", logLevel: "error",
    });
    niivue.onLocationChange = () => this.moved();
    await niivue.attachToCanvas(this.canvas);
    return niivue;
  }

  async layerOf(volume, array, name, colours) {
    const { NVImage } = globalThis.niivue;
    const { affine } = volume;
    const spacing = [0, 1, 2].map(x => Math.hypot(affine[x], affine[x + 4], affine[x + 8]));
    const file = NVImage.createNiftiArray(volume.size, spacing, affine, 2, array);
    const layer = await NVImage.loadFromUrl({
      url: file.buffer, name: `${name}.nii`, colormap: "gray", cal_min: 0, cal_max: 255,
      opacity: colours ? 0 : 1,
    });
    if (colours) layer.setColormapLabel(lookUpTable(colours));
    return layer;
  }

  setLayer(layer, opacity) {
    this.layer = layer;
    this.opacity = opacity;
    if (!this.size) return;
    this.niivue.volumes.slice(1).forEach((volume, at) => {
      volume.opacity = LAYERS[at + 1] === layer ? opacity : 0;
    });
    this.niivue.updateGLVolume();
  }

  // `view` is the axis across the slices shown: "0", "1", "2"; or "all" for the three planes.
  setView(view) {
    this.view = view;
    if (!this.size) return;
    const { niivue } = this;
    const types = {
      0: niivue.sliceTypeSagittal,
      1: niivue.sliceTypeCoronal,
      2: niivue.sliceTypeAxial,
      all: niivue.sliceTypeMultiplanar,
    };
    niivue.opts.crosshairWidth = view === "all" ? 0.3 : 0;
    niivue.setSliceType(types[view]);
    this.moved();
  }

  get axis() { return this.view === "all" ? this.across : Number(this.view); }

  get slice() {
    const length = this.size[this.axis];
    return Math.min(length - 1, Math.floor(this.niivue.scene.crosshairPos[this.axis] * length));
  }

  step(by) {
    if (this.size) this.goTo(this.slice + by);
  }

  goTo(slice) {
    if (!this.size) return;
    const length = this.size[this.axis];
    const kept = Math.max(0, Math.min(length - 1, slice));
    this.niivue.scene.crosshairPos[this.axis] = (kept + 0.5) / length;
    this.niivue.drawScene();
    this.moved();
  }

  moved() {
    if (this.size) this.onMove(this.slice, this.size[this.axis]);
  }
}
