/** Who draws: a dialog for the key where the cell asks for one, and the name in the header. */

import { ApiError, getSession, onSignedOut, signIn, signOut } from "./api.js";
import { $, setText } from "./dom.js";
import { t } from "./i18n.js";
import { forgetOrigins } from "./origins.js";
import { save } from "./settings.js";
import { emptyStash } from "./stash.js";
import { toast } from "./toast.js";
import { whyNot } from "./why.js";

export class Session {
  #dialog = $("#sign-in");
  /** @type {SessionAnswer["key"]} */
  #key = null;

  /**
   * `onOpen()` once requests will be answered, `onShut()` when a key is asked for.
   * @param {() => void} onOpen
   * @param {() => void} onShut
   */
  constructor(onOpen, onShut) {
    this.onOpen = onOpen;
    this.onShut = onShut;
    this.open = false;
    onSignedOut(() => this.#ask());
    $("#sign-in-form").addEventListener("submit", (event) => (event.preventDefault(), this.#submit()));
    this.#dialog.addEventListener("cancel", (event) => event.preventDefault()); // nothing works without a key
    $("#account").addEventListener("toggle", () => this.#look());
    $("#sign-out").addEventListener("click", () => this.#leave());
    $("#sign-out-everywhere").addEventListener("click", () => this.#leaveEverywhere());
  }

  async start() {
    const session = await getSession().catch(() => null); // an older cell knows none
    this.#key = session?.key ?? null;
    this.render();
    if (session?.auth === "keys" && !session.signed_in) return this.#ask();
    this.open = true;
    this.onOpen();
  }

  // What was drawn today changes while the page is open.
  async #look() {
    const session = $("#account").open ? await getSession().catch(() => null) : null;
    if (!session?.key) return;
    this.#key = session.key;
    this.render();
  }

  render() {
    $("#account").hidden = !this.#key;
    if (!this.#key) return;
    const { name, role, images_today, images_per_day } = this.#key;
    $("#account-ops").hidden = role !== "ops";
    setText($("#account-name"), name);
    const today = { n: images_today ?? 0, max: images_per_day };
    setText($("#account-facts"), images_per_day ? t("todayOf", today) : t("today", today));
  }

  #ask() {
    this.open = false;
    this.onShut();
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  async #submit() {
    setText($("#sign-in-error"), "");
    try {
      await signIn($("#key").value.trim());
    } catch (error) {
      const wrong = error instanceof ApiError && error.status === 401;
      return setText($("#sign-in-error"), wrong ? t("wrongKey") : whyNot(error));
    }
    $("#key").value = "";
    this.#dialog.close();
    await this.start();
  }

  // The pictures of one key must not stay on show for the next person.
  async #leave() {
    await signOut().catch(() => null);
    await forgetPictures();
    location.reload();
  }

  // Whoever asks for this must learn that it was not done.
  async #leaveEverywhere() {
    try {
      await signOut(true);
    } catch (error) {
      return toast(t("signOutFailed", { why: whyNot(error) }));
    }
    await forgetPictures();
    location.reload();
  }
}

async function forgetPictures() {
  save("source", null);
  forgetOrigins();
  await emptyStash();
}
