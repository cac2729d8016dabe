/** A picture that is dragged out of the page is the picture itself, not its preview. */

/**
 * What its file is called where somebody keeps it.
 * @param {Picture} picture
 */
export function fileNameOf({ prompt, seed, format }) {
  const words = prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 48).replace(/^-|-$/g, "");
  return `${words}-${seed}.${format === "jpeg" ? "jpg" : format}`;
}

/**
 * @param {DragEvent} event
 * @param {Picture} picture
 */
export function dragOriginal({ dataTransfer }, picture) {
  if (!dataTransfer || picture.blob) return; // those bytes are the picture
  const url = new URL(picture.url, location.href).href;
  dataTransfer.clearData();
  dataTransfer.setData("text/uri-list", url);
  dataTransfer.setData("text/plain", url);
  // What browsers of Chromium's kind write as a file.
  dataTransfer.setData("DownloadURL", `image/${picture.format}:${fileNameOf(picture)}:${url}?download=1`);
}
