// The difference of two tiles: a map on a canvas, and the fraction of changed pixels.

const UNCHANGED = [250, 248, 251], CHANGED = [74, 20, 96]; // colors of no and of the largest difference
const VISIBLE = 12; // of 255: the smallest visible change

/** Draw where `now` differs from `before`, two loaded <img> of the same size; returns the fraction of visibly changed pixels. */
export function drawDifference(canvas, before, now) {
  const side = now.naturalWidth;
  const [a, b] = [before, now].map((image) => pixels(image, side));
  const map = new ImageData(side, side);
  let changed = 0;
  for (let k = 0; k < map.data.length; k += 4) {
    const most = Math.max(Math.abs(a[k] - b[k]), Math.abs(a[k + 1] - b[k + 1]), Math.abs(a[k + 2] - b[k + 2]));
    const share = Math.min(1, most / 128);
    for (let c = 0; c < 3; c++) map.data[k + c] = UNCHANGED[c] + share * (CHANGED[c] - UNCHANGED[c]);
    map.data[k + 3] = 255;
    changed += most > VISIBLE;
  }
  canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(map, 0, 0);
  const share = changed / (side * side);
  canvas.setAttribute("aria-label", `Difference: ${percent(share)} of the pixels changed`);
  return share;
}

/** A fraction as text, such as "7 %". */
export function percent(share) {
  return share > 0 && share < 0.01 ? "under 1 %" : `${Math.round(100 * share)} %`;
}

function pixels(image, side) {
  const pen = new OffscreenCanvas(side, side).getContext("2d");
  pen.drawImage(image, 0, 0, side, side);
  return pen.getImageData(0, 0, side, side).data;
}
