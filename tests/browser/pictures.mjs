// Pictures of every screen, for people to look at, and the README's. PARLEY_PICTURES names their folder:
//   PARLEY_PICTURES=/tmp/pictures npm run pictures

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { giveName, rosterIs, say, scenario, SERVER_AWAY, shows, useBrowser } from "./support/people.mjs";

const FOLDER = process.env.PARLEY_PICTURES;
if (!FOLDER) throw new Error("PARLEY_PICTURES must name the folder to write to");
const WIDE = { width: 1240, height: 800 };
const PHONE = { width: 390, height: 780 };

// A small conversation: who says what, in order.
const TALK = [
  ["Noor", "Good morning! Is the book club still on for Thursday?"],
  ["Tomás", "It is. Chapter four, and Ines brings cake 🍰"],
  ["Ines", "I promised nothing"],
  ["Ines", "…lemon or poppy seed?"],
  ["Alice", "Lemon, always lemon."],
  ["Noor", "The notes from last time are at https://example.org/notes/chapter-3"],
  ["Tomás", "Thank you! I missed the part about clocks that run backwards, can somebody say in a sentence what it was?"],
  ["Alice", "Never trust one: take the last time you wrote down, add one, and use the later of the two."],
  ["Alice", "That way the order of what was said never changes, whatever the clock does."],
  ["Tomás", "Neat. See you Thursday then"],
];

/** The picture of the README: a wide window, and a phone in front of it. */
async function composition(open, wide, phone) {
  const shots = [];
  for (const page of [wide, phone]) {
    await page.evaluate(() => document.activeElement.blur());
    shots.push((await page.screenshot({ animations: "disabled" })).toString("base64"));
  }
  const sheet = await open("about:blank", { viewport: { width: 1360, height: 800 }, deviceScaleFactor: 1 });
  await sheet.setContent(`<style>
    body { margin: 0; height: 800px; position: relative; background: #e9e8f3; overflow: hidden; }
    img { position: absolute; display: block; border-radius: 14px; box-shadow: 0 0 0 1px #0002, 0 14px 34px #2a285533; }
    .phone { border-radius: 26px; box-shadow: 0 0 0 7px #17171c, 0 18px 44px #2a285566; }
  </style>
  <img src="data:image/png;base64,${shots[0]}" style="left: 36px; top: 36px; width: 1140px">
  <img class="phone" src="data:image/png;base64,${shots[1]}" style="right: 36px; bottom: 36px; width: 300px">`);
  await picture(sheet, "readme");
}

async function picture(page, name) {
  await page.evaluate(() => document.fonts.ready);
  await page.screenshot({ path: join(FOLDER, `${name}.png`), animations: "disabled" });
}

mkdirSync(FOLDER, { recursive: true });
useBrowser();

scenario("pictures", { allow: [SERVER_AWAY, /404/] }, async ({ server, open, enter }) => {
  const cast = {};
  const look = { deviceScaleFactor: 1 };
  for (const [colorScheme, viewport, name] of [["light", WIDE, "light"], ["dark", WIDE, "dark"], ["light", PHONE, "phone"]]) {
    const page = await open("/", { ...look, colorScheme, viewport });
    await picture(page, `1-name-${name}`);
    await giveName(page, "Mira");
    await picture(page, `2-room-${name}`);
    await page.close();
  }
  for (const name of ["Noor", "Tomás", "Ines"]) cast[name] = await enter(name, "book-club", look);
  cast.Alice = await enter("Alice", "book-club", { ...look, viewport: WIDE });
  const dark = await enter("Mira", "book-club", { ...look, viewport: WIDE, colorScheme: "dark" });
  const phone = await enter("Jonas", "book-club", { ...look, viewport: PHONE, hasTouch: true, isMobile: true });
  await rosterIs(cast.Alice, ["Alice", "Ines", "Jonas", "Mira", "Noor", "Tomás"]);
  await picture(cast.Alice, "3-empty-light");
  const said = [];
  for (const [who, text] of TALK) {
    said.push(text);
    await say(cast[who], text);
    await shows(cast.Alice, said);
  }
  await say(phone, "Can I come too? I am new here");
  said.push("Can I come too? I am new here");
  for (const page of [cast.Alice, dark, phone]) await shows(page, said);
  await picture(cast.Alice, "4-chat-light");
  await picture(dark, "4-chat-dark");
  await picture(phone, "4-chat-phone");
  await cast.Alice.setViewportSize({ width: 1140, height: 728 });
  await phone.setViewportSize({ width: 300, height: 590 });
  await phone.emulateMedia({ colorScheme: "dark" });
  await composition(open, cast.Alice, phone);
  await phone.emulateMedia({ colorScheme: "light" });
  await phone.setViewportSize(PHONE);
  await cast.Alice.setViewportSize(WIDE);
  const phoneDark = await enter("Jonas", "book-club", { ...look, viewport: { width: 320, height: 640 }, colorScheme: "dark" });
  await picture(phoneDark, "4-chat-320-dark");
  await phoneDark.close();

  await phone.locator("#people-open").click();
  await phone.waitForTimeout(400);
  await picture(phone, "5-drawer-phone");
  await phone.keyboard.press("Escape");
  await cast.Alice.getByRole("button", { name: "Invite" }).click();
  await picture(cast.Alice, "6-invite-light");
  await cast.Alice.keyboard.press("Escape");

  await server.kill();
  await say(cast.Alice, "Does this arrive?");
  await say(phone, "And this?");
  await cast.Alice.getByLabel("Message", { exact: true }).fill("A draft that is nearly as long as a message may be. ".repeat(5).slice(0, 243));
  for (const page of [cast.Alice, dark, phone]) await page.locator("#banner").waitFor({ timeout: 20_000 });
  await picture(cast.Alice, "7-lost-light");
  await picture(dark, "7-lost-dark");
  await picture(phone, "7-lost-phone");
  await server.restart();

  const nowhere = await open(`/#${"0".repeat(64)}`, { ...look, viewport: WIDE });
  await giveName(nowhere, "Mira");
  await nowhere.locator("#stopped").waitFor();
  await picture(nowhere, "8-missing-light");
});
