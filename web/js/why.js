/** What to tell of a request that failed. */

import { ApiError } from "./api.js";
import { reasonOf, t } from "./i18n.js";

/**
 * The server's reason, or that there is none: what browsers say of a lost connection helps nobody.
 * @param {unknown} error
 */
export function whyNot(error) {
  if (!(error instanceof ApiError)) return t("errorNetwork");
  return reasonOf(error) || t("errorHttp", { status: error.status });
}
