// How two tiles differ: a map on a canvas, and a number in words.

const UNCHANGED = [250, 248, 251], CHANGED = [74, 20, 96]; // what no and the largest difference look like
const SEEN = 12; // of 255: a change that an eye sees

/** Draw where `now` differs from `before`, two loaded <img> of one size, and return the share of pixels that changed visibly. */
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
    changed += most > SEEN;
  }
  canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(map, 0, 0);
  const share = changed / (side * side);
  canvas.setAttribute("aria-label", `Difference: ${percent(share)} of the pixels changed`);
  return share;
}

export function percent(share) {
  return share > 0 && share < 0.01 ? "under 1 %" : `${Math.round(100 * share)} %`;
}

function pixels(image, side) {
  const pen = new OffscreenCanvas(side, side).getContext("2d");
  pen.drawImage(image, 0, 0, side, side);
  return pen.getImageData(0, 0, side, side).data;
}
