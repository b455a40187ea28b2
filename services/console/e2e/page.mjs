// Drives the console in a real browser: sign in, find the deployment that waits, approve it, see it succeed live with its
// log. Arguments: address, approver's token, deployment id, file for a picture. Exits 1 with the reason when it is not so.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [base, token, id, picture] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "console-"));
const flags = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const context = await chromium.launchPersistentContext(profile, { executablePath, args: flags, headless: true });
const errors = [];
try {
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("pageerror", (e) => errors.push(`page error: ${e}`));
  page.on("console", (m) => m.type() === "error" && !m.text().includes("401") && errors.push(`console: ${m.text()}`));

  await page.goto(base);
  await page.getByLabel("Token").fill("wl_wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("Token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.locator(`a[href="#/deployments/${id}"]`).first().click();

  await page.getByText("approval 0 of 1").waitFor();
  await page.getByRole("button", { name: "Approve" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Approve" }).click();
  // From here on nothing is clicked: the page follows by itself.
  await page.locator("h1 .state.succeeded").waitFor();
  await page.locator(".host.succeeded").nth(2).waitFor();
  await page.locator(".log").getByText("hello from the page test").first().waitFor();
  await page.getByRole("button", { name: "Roll back" }).waitFor({ state: "detached" });
  if (picture) await page.screenshot({ path: picture, fullPage: true });
  // The token is for this tab only, and a sign-out forgets it.
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token").waitFor();
} catch (e) {
  errors.push(String(e));
  if (picture) await (context.pages().at(-1))?.screenshot({ path: picture }).catch(() => {});
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
if (errors.length > 0) {
  console.error(errors.join("\n"));
  process.exit(1);
}
console.log("the console did its part");
