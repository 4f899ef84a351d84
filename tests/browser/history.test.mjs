// The log: scrolling back, staying where one reads, and staying bounded.

import assert from "node:assert/strict";
import { connected, fill, messages, say, scenario, shows, texts, useBrowser } from "./support/people.mjs";
import { until } from "./support/wait.mjs";

useBrowser();

const numbered = (n, from = 0) => Array.from({ length: n }, (_, i) => `m${from + i}`);

/** The text of the first message that is wholly in view, and how far below the log's top it is, in pixels. */
function firstInView(page) {
  return page.evaluate(() => {
    const top = document.getElementById("log").getBoundingClientRect().top;
    for (const bubble of document.querySelectorAll("#list .bubble")) {
      const offset = bubble.getBoundingClientRect().top - top;
      if (offset >= 0) return { text: bubble.textContent, offset: Math.round(offset) };
    }
    return null;
  });
}

/** How far below the log's top the message with this text is, in pixels. */
function offsetOf(page, text) {
  return page.evaluate(wanted => {
    const bubble = Array.from(document.querySelectorAll("#list .bubble")).find(node => node.textContent === wanted);
    return Math.round(bubble.getBoundingClientRect().top - document.getElementById("log").getBoundingClientRect().top);
  }, text);
}

const scrollTo = (page, top) => page.evaluate(to => { document.getElementById("log").scrollTop = to; }, top);
const fromEnd = page => page.evaluate(() => {
  const log = document.getElementById("log");
  return Math.round(log.scrollHeight - log.scrollTop - log.clientHeight);
});

scenario("scrolling up loads older messages and keeps the place", {}, async ({ server, enter }) => {
  const all = numbered(360);
  await fill(server.url, "lobby", "bob", all);
  const alice = await enter("alice", "lobby");
  await shows(alice, all.slice(-100));
  await until("it starts at the end", async () => (await fromEnd(alice)) === 0);
  assert.equal(await alice.locator("#intro").isVisible(), false);

  // Older messages come only when the answer is let through, so that the place can be compared.
  let asked = 0;
  let answer;
  await alice.route(/\/history\?/, async route => {
    asked += 1;
    await new Promise(resolve => { answer = resolve; });
    await route.continue();
  });
  for (const shown of [200, 300, 360]) {
    const before = asked;
    await scrollTo(alice, 40);
    await until("it asks for older ones", () => asked === before + 1);
    const place = await firstInView(alice);
    answer();
    await until(`${shown} are shown`, async () => (await messages(alice)).length === shown);
    assert.equal(await offsetOf(alice, place.text), place.offset, "what was in view stays where it was");
    assert.deepEqual(await texts(alice), all.slice(-shown));
  }
  await alice.locator("#intro").waitFor();
  const before = asked;
  await scrollTo(alice, 0);
  await scrollTo(alice, 60);
  await scrollTo(alice, 0);
  assert.equal(await alice.locator("#older").isVisible(), false);
  assert.equal(asked, before, "the beginning is known");
  const seen = await messages(alice);
  assert.ok(seen.every((message, i) => i === 0 || message.ts > seen[i - 1].ts), "in order, none twice");
});

scenario("older messages that cannot be loaded can be asked for again", { allow: [/500/] }, async ({ server, enter }) => {
  const all = numbered(150);
  await fill(server.url, "lobby", "bob", all);
  let broken = true;
  const alice = await enter("alice", "lobby", {
    prepare: page => page.route(/\/history\?/, route => broken ? route.fulfill({ status: 500, body: "{}" }) : route.continue()),
  });
  await shows(alice, all.slice(-100));
  await scrollTo(alice, 0);
  const again = alice.getByRole("button", { name: "Try again" });
  await again.waitFor();
  broken = false;
  await again.click();
  await shows(alice, all);
});

scenario("one who reads back stays there and is told of what is new", {}, async ({ server, enter }) => {
  const old = numbered(60);
  await fill(server.url, "lobby", "bob", old);
  const alice = await enter("alice", "lobby");
  await shows(alice, old);
  await until("it starts at the end", async () => (await fromEnd(alice)) === 0);
  const jump = alice.locator("#jump");
  assert.equal(await jump.isVisible(), false);

  // At the end, the log follows.
  await fill(server.url, "lobby", "carol", numbered(20, 100));
  await shows(alice, [...old, ...numbered(20, 100)]);
  await until("it followed", async () => (await fromEnd(alice)) === 0);

  // Away from it, it does not move.
  await scrollTo(alice, 300);
  await jump.waitFor();
  const place = await firstInView(alice);
  await fill(server.url, "lobby", "carol", numbered(3, 200));
  await until("the button says so", async () => (await jump.textContent()) === "3 new messages");
  assert.deepEqual(await firstInView(alice), place);
  assert.match(await alice.title(), /^\(3\) #lobby/);
  await jump.click();
  await until("it is at the end", async () => (await fromEnd(alice)) === 0);
  assert.equal(await jump.isVisible(), false);
  assert.match(await alice.title(), /^#lobby/);

  // Saying something leads to the end as well.
  await scrollTo(alice, 300);
  await jump.waitFor();
  await say(alice, "here I am");
  await until("it is at the end", async () => (await fromEnd(alice)) === 0);
});

scenario("a window that changes its size stays at the end", {}, async ({ server, enter }) => {
  await fill(server.url, "lobby", "bob", numbered(60));
  const alice = await enter("alice", "lobby");
  await until("it starts at the end", async () => (await fromEnd(alice)) === 0);
  for (const size of [{ width: 1100, height: 400 }, { width: 380, height: 640 }, { width: 1100, height: 720 }]) {
    await alice.setViewportSize(size);
    await until("still at the end", async () => (await fromEnd(alice)) === 0);
  }
});

scenario("the log starts at its end, also when the backlog comes in pieces", {}, async ({ open }) => {
  let socket;
  const page = await open("/#lobby", {
    prepare: target => target.routeWebSocket(/websocket/, route => {
      socket = route;
      route.onMessage(() => { /* the name */ });
    }),
  });
  await page.getByLabel("Your name").fill("alice");
  await page.keyboard.press("Enter");
  await until("it dialled", () => socket);
  for (let n = 1; n <= 40; n += 1) {
    socket.send(JSON.stringify({ name: "bob", message: `m${n}`, timestamp: n }));
    if (n % 20) continue;
    await until("it follows", async () => (await messages(page)).length === n && (await fromEnd(page)) === 0);
  }
  // The welcome above the messages appears only now, and must not push them out of view.
  socket.send(JSON.stringify({ ready: true }));
  await page.locator("#intro").waitFor();
  await until("it is still at the end", async () => (await fromEnd(page)) === 0);
  assert.equal(await page.locator("#jump").isVisible(), false);
});

scenario("the page stays bounded however much is said, and nothing is out of reach", {}, async ({ server, enter }) => {
  const alice = await enter("alice", "lobby");
  const all = numbered(2300);
  await fill(server.url, "lobby", "bob", all);
  await until("the last one is there", async () => (await texts(alice)).at(-1) === "m2299");
  const kept = await texts(alice);
  assert.ok(kept.length <= 2000, `${kept.length} messages are kept`);
  assert.deepEqual(kept, all.slice(-kept.length));
  await scrollTo(alice, 0);
  await until("older ones come again", async () => (await texts(alice)).length > kept.length);
  const more = await texts(alice);
  assert.deepEqual(more, all.slice(-more.length));
});

scenario("days and groups are told apart", {}, async ({ open }) => {
  const noon = new Date();
  noon.setHours(12, 0, 0, 0);
  const at = (days, minutes) => noon.getTime() + days * 86_400_000 + minutes * 60_000;
  const said = [["bob", at(-2, 0)], ["bob", at(-2, 1)], ["bob", at(-1, 0)], ["carol", at(-1, 1)], ["bob", at(-1, 2)], ["bob", at(-1, 30)]];
  const page = await open("/#lobby", {
    prepare: target => target.routeWebSocket(/websocket/, socket => socket.onMessage(() => {
      said.forEach(([name, timestamp], i) => socket.send(JSON.stringify({ name, message: `m${i}`, timestamp })));
      socket.send(JSON.stringify({ ready: true }));
    })),
  });
  await page.getByLabel("Your name").fill("alice");
  await page.keyboard.press("Enter");
  await connected(page);
  const starts = await page.locator("#list .msg").evaluateAll(nodes => nodes.map(node => node.classList.contains("start")));
  assert.deepEqual(starts, [true, false, true, true, true, true]);
  assert.equal(await page.locator("#list .divider").count(), 2);
  assert.equal(await page.locator("#list .divider").nth(1).textContent(), "Yesterday");
});
