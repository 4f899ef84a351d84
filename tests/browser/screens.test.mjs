// Screens, the URL's hash, the keyboard, narrow windows and accessibility.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { connected, fill, giveName, messages, rosterIs, say, scenario, SERVER_AWAY, shows, useBrowser } from "./support/people.mjs";
import { until } from "./support/wait.mjs";

useBrowser();

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const room = page => new URL(page.url()).hash;
const title = page => page.locator("#room-title").textContent();

scenario("a room is chosen by name, and left again", {}, async ({ enter }) => {
  const alice = await enter("alice");
  const field = alice.getByLabel("Room name");
  await field.fill("  My_Room! №1 ");
  assert.equal(await alice.locator("#room-preview").textContent(), "Opens #my-room1");
  await alice.keyboard.press("Enter");
  await connected(alice);
  assert.equal(room(alice), "#my-room1");
  assert.equal(await title(alice), "my-room1");
  await say(alice, "in the first room");
  await shows(alice, ["in the first room"]);

  await alice.getByRole("button", { name: "Leave" }).click();
  await field.waitFor();
  assert.equal(room(alice), "");
  await field.fill("other");
  await alice.keyboard.press("Enter");
  await connected(alice);
  await shows(alice, []);
  await rosterIs(alice, ["alice"]);

  await alice.goBack();
  await field.waitFor();
  await alice.goBack();
  await connected(alice);
  assert.equal(await title(alice), "my-room1");
  await shows(alice, ["in the first room"]);
});

scenario("editing the hash switches the room", {}, async ({ enter }) => {
  const bob = await enter("bob", "first");
  const alice = await enter("alice", "first");
  await rosterIs(bob, ["bob", "alice"]);
  await alice.evaluate(() => { location.hash = "#Second_One"; });
  await until("she is in the other room", async () => (await title(alice)) === "second-one");
  await connected(alice);
  assert.equal(room(alice), "#second-one");
  await rosterIs(bob, ["bob"]);
  await say(bob, "to nobody");
  await say(alice, "alone");
  await shows(alice, ["alone"]);
  await shows(bob, ["to nobody"]);
  await alice.evaluate(() => { location.hash = ""; });
  await alice.getByLabel("Room name").waitFor();
});

scenario("hashes that name no room are explained", {}, async ({ open, enter }) => {
  for (const [hash, problem] of [
    ["#!!!", /needs letters, digits or hyphens/],
    [`#${"a".repeat(33)}`, /at most 32 characters/],
    [`#${"f".repeat(65)}`, /at most 32 characters/],
  ]) {
    const page = await open(`/${hash}`);
    await giveName(page, "alice");
    await page.getByLabel("Room name").waitFor();
    assert.match(await page.locator("#room-problem").textContent(), problem);
  }
  const longest = await enter("alice", "b".repeat(32));
  await say(longest, "fits");
  await shows(longest, ["fits"]);
  const encoded = await enter("alice", "caf%C3%A9");
  assert.equal(await title(encoded), "caf");
});

scenario("a typed room name ends at its limit", {}, async ({ enter }) => {
  const alice = await enter("alice");
  await alice.getByLabel("Room name").pressSequentially(`room-${"x".repeat(40)}`);
  assert.equal(await alice.getByLabel("Room name").inputValue(), `room-${"x".repeat(27)}`);
  await alice.getByLabel("Room name").fill("");
  await alice.keyboard.press("Enter");
  assert.match(await alice.locator("#room-problem").textContent(), /needs letters/);
});

scenario("a private room that does not exist is explained", { allow: [SERVER_AWAY, /status of 404/, /Unexpected response code: 404/] }, async ({ open }) => {
  const alice = await open(`/#${"0123456789abcdef".repeat(4)}`);
  await giveName(alice, "alice");
  await alice.locator("#stopped").waitFor();
  assert.equal(await alice.locator("#stopped-title").textContent(), "This private room does not exist here");
  assert.equal(await alice.locator("#composer").isVisible(), false);
  assert.equal(await alice.locator("#status-text").textContent(), "Not connected");
  await alice.keyboard.press("Enter");
  await alice.getByLabel("Room name").waitFor();
});

scenario("everything can be done with the keyboard alone", {}, async ({ server, enter, open }) => {
  await fill(server.url, "keys", "bob", Array.from({ length: 80 }, (_, n) => `m${n}`));
  const page = await open("/");
  await page.keyboard.type("alice");
  await page.keyboard.press("Enter");
  await page.keyboard.type("keys");
  await page.keyboard.press("Enter");
  await connected(page);
  await page.keyboard.type("typed ");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("on two lines");
  await page.keyboard.press("Enter");
  await until("it is sent", async () => (await messages(page)).at(-1).text === "typed \non two lines");

  // From the text field the log can be moved, and typing goes on.
  const top = () => page.evaluate(() => document.getElementById("log").scrollTop);
  await until("it is at the end", async () => !(await page.locator("#jump").isVisible()));
  const end = await top();
  await page.keyboard.press("PageUp");
  await until("a page up", async () => (await top()) < end - 200);
  await page.keyboard.press("ArrowUp");
  const up = await top();
  await page.keyboard.press("PageDown");
  await until("down again", async () => (await top()) > up);
  assert.equal(await page.evaluate(() => document.activeElement.id), "text");

  // Every control is reached by Tab and shows that it has the focus.
  await page.setViewportSize({ width: 400, height: 700 });
  await page.locator("#room-title").focus();
  const reached = [];
  for (let n = 0; n < 8; n += 1) {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => document.activeElement.id));
    const ring = await page.evaluate(() => {
      const target = document.activeElement.id === "text" ? document.activeElement.parentElement : document.activeElement;
      const style = getComputedStyle(target);
      return style.outlineStyle !== "none" || style.boxShadow !== "none";
    });
    assert.ok(ring, `${reached.at(-1)} shows its focus`);
    if (reached.at(-1) === "send") break;
  }
  for (const id of ["invite-open", "people-open", "leave", "log", "text", "send"]) assert.ok(reached.includes(id), `${id} is reached, in ${reached}`);

  // The drawer takes the focus, keeps it and gives it back.
  await page.locator("#people-open").focus();
  await page.keyboard.press("Enter");
  await page.locator("#people-close").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "people-close");
  for (let n = 0; n < 4; n += 1) {
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement === document.body || Boolean(document.activeElement.closest("#people"))), true);
  }
  await page.keyboard.press("Escape");
  await page.locator("#people-close").waitFor({ state: "hidden" });
  assert.equal(await page.evaluate(() => document.activeElement.id), "people-open");

  await page.locator("#leave").focus();
  await page.keyboard.press("Enter");
  await page.getByLabel("Room name").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "room-input");
});

/** Serious and critical findings of axe, in words. */
async function findings(page) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations
    .filter(violation => ["serious", "critical"].includes(violation.impact))
    .map(violation => `${violation.id}: ${violation.nodes.map(node => `${node.target} ${node.failureSummary}`).join("; ")}`);
}

/** Things wider than the window, and controls smaller than a finger. */
async function misfits(page) {
  return page.evaluate(() => {
    const found = [];
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth} wide in ${width}`);
    const log = document.getElementById("log");
    if (log.scrollWidth > log.clientWidth) found.push(`the log is ${log.scrollWidth} wide in ${log.clientWidth}`);
    for (const node of document.querySelectorAll("button, input, textarea")) {
      const box = node.getBoundingClientRect();
      if (!box.width || getComputedStyle(node).visibility === "hidden") continue;
      if (box.height < 44 || box.width < 44) found.push(`${node.id || node.textContent} is ${box.width}×${box.height}`);
      if (box.left < 0 || box.right > width) found.push(`${node.id || node.textContent} is out of view`);
    }
    return found;
  });
}

for (const colorScheme of ["light", "dark"]) {
  for (const [width, height] of [[1280, 800], [320, 568]]) {
    scenario(`every screen is accessible and fits: ${colorScheme}, ${width} wide`, { allow: [SERVER_AWAY, /404/] }, async ({ server, open, enter }) => {
      const check = async (page, screen) => {
        // A colour in the middle of a transition is nobody's colour.
        await until("nothing moves", () => page.evaluate(() => document.getAnimations().every(animation => animation.playState !== "running" || animation.effect.getTiming().iterations === Infinity)));
        assert.deepEqual(await findings(page), [], screen);
        assert.deepEqual(await misfits(page), [], screen);
      };
      const bob = await enter("W".repeat(32), "lobby-with-a-rather-long-name-ok");
      const page = await open("/", { colorScheme, viewport: { width, height } });
      await check(page, "name");
      await page.keyboard.press("Enter");
      await page.locator("#name-problem", { hasText: "type a name" }).waitFor();
      await check(page, "name with a problem");
      await giveName(page, "alice");
      await check(page, "room");
      await page.getByLabel("Room name").fill("Lobby with a rather long name ok");
      await check(page, "room with a preview");
      await page.getByLabel("Room name").fill("#lobby-with-a-rather-long-name-ok");
      await page.keyboard.press("Enter");
      await connected(page);
      await check(page, "empty chat");

      await say(bob, "w".repeat(256));
      await say(bob, `https://example.org/${"path/".repeat(40)}`);
      for (let n = 0; n < 12; n += 1) await say(bob, `line ${n}`);
      await say(page, "and mine, with https://example.org");
      await until("all are there", async () => (await messages(page)).length === 15 && (await messages(page)).every(message => message.state === "sent"));
      await page.getByLabel("Message", { exact: true }).fill("x".repeat(256));
      await check(page, "chat");

      await page.evaluate(() => { document.getElementById("log").scrollTop = 0; });
      await page.locator("#jump").waitFor();
      await check(page, "scrolled back");

      await page.getByRole("button", { name: "Invite" }).click();
      await page.getByLabel("Link to this room").waitFor();
      await check(page, "invite");
      await page.keyboard.press("Escape");

      if (width < 860) {
        await page.locator("#people-open").click();
        await page.locator("#people-close").waitFor();
        await check(page, "drawer");
        await page.keyboard.press("Escape");
      }

      await server.kill();
      await say(page, "waiting");
      await page.locator("#banner").waitFor();
      await check(page, "disconnected");
      await server.restart();
      await connected(page);

      const nowhere = await open(`/#${"0".repeat(64)}`, { colorScheme, viewport: { width, height } });
      await giveName(nowhere, "alice");
      await nowhere.locator("#stopped").waitFor();
      await check(nowhere, "no such room");
    });
  }
}

for (const colorScheme of ["light", "dark"]) {
  scenario(`what was refused is readable: ${colorScheme}`, {}, async ({ open }) => {
    const answers = [{ error: "No." }, { error: "Too fast.", retry_after_ms: 60_000 }];
    const page = await open("/#lobby", {
      colorScheme,
      viewport: { width: 320, height: 568 },
      prepare: target => target.routeWebSocket(/websocket/, socket => socket.onMessage(data => {
        const { name, id } = JSON.parse(data);
        socket.send(JSON.stringify(name ? { ready: true } : { ...answers.shift(), id }));
      })),
    });
    await giveName(page, "alice");
    await connected(page);
    await say(page, "refused for good");
    await page.locator('.msg[data-state="failed"]').waitFor();
    await say(page, "refused for now");
    await page.locator('.msg[data-state="limited"]').waitFor();
    assert.deepEqual(await findings(page), []);
    assert.deepEqual(await misfits(page), []);
  });
}

scenario("a wide screen always shows who is there", {}, async ({ enter }) => {
  const alice = await enter("alice", "lobby");
  assert.equal(await alice.locator("#roster").isVisible(), true);
  assert.equal(await alice.locator("#people-open").isVisible(), false);
  await alice.setViewportSize({ width: 400, height: 700 });
  await alice.locator("#roster").waitFor({ state: "hidden" });
  assert.equal(await alice.locator("#people-badge").textContent(), "1");
  await alice.locator("#people-open").click();
  await alice.locator("#roster").waitFor();
  await alice.mouse.click(20, 400);
  await alice.locator("#roster").waitFor({ state: "hidden" });
});

scenario("the page loads nothing from anywhere else", {}, async ({ server, enter }) => {
  const requested = [];
  const alice = await enter("alice", "lobby", { prepare: page => page.on("request", request => requested.push(request.url())) });
  await say(alice, "quiet");
  await shows(alice, ["quiet"]);
  const outside = requested.filter(url => !url.startsWith(`${server.url}/`) && !url.startsWith("data:"));
  assert.deepEqual(outside, []);
  const policy = (await fetch(server.url)).headers.get("content-security-policy");
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe/);
});
