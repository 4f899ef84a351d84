// The limiter: what it refuses is shown, waits and goes out by itself; what cannot go out is kept.

import assert from "node:assert/strict";
import { connected, giveName, messages, say, scenario, shows, useBrowser } from "./support/people.mjs";
import { until } from "./support/wait.mjs";

useBrowser();

const limited = { env: { PARLEY_LIMITS_INTERVAL_MS: "1500", PARLEY_LIMITS_GRACE_MS: "3000" } };

scenario("messages sent too fast say so, wait, and arrive in order", limited, async ({ enter }) => {
  const alice = await enter("alice", "lobby");
  const bob = await enter("bob", "lobby");
  await until("the connection is said", async () => (await alice.locator("#announcer").textContent()) === "Connected.");
  const written = Array.from({ length: 7 }, (_, n) => `fast ${n}`);
  for (const text of written) await say(alice, text);
  const refused = alice.locator('.msg[data-state="limited"]');
  await refused.first().waitFor();
  assert.match(await refused.first().locator(".state").textContent(), /Sending too fast\. Goes out in \d s/);
  await until("the next waits for it", async () => (await messages(alice)).some(message => message.state === "limited") && (await refused.count()) >= 2);
  assert.match(await refused.nth(1).locator(".state").textContent(), /Waiting its turn/);
  assert.deepEqual((await messages(alice)).map(message => message.text), written, "nothing is lost or reordered");
  await until("it was said aloud", async () => /sent by itself/.test(await alice.locator("#announcer").textContent()));

  await until("all arrived", async () => (await messages(bob)).length === written.length, 30_000);
  await shows(alice, written);
  await shows(bob, written);
});

scenario("a refusal for good keeps the text, to be sent again, changed or given up", {}, async ({ open }) => {
  const reasons = [];
  const page = await open("/#lobby", {
    prepare: target => target.routeWebSocket(/websocket/, socket => {
      let time = 1000;
      socket.onMessage(data => {
        const frame = JSON.parse(data);
        if (frame.name) return socket.send(JSON.stringify({ ready: true }));
        const reason = reasons.shift();
        if (reason) return socket.send(JSON.stringify({ error: reason, id: frame.id }));
        time += 1;
        socket.send(JSON.stringify({ name: "alice", message: frame.message, timestamp: time, id: frame.id }));
        socket.send(JSON.stringify({ ack: frame.id, timestamp: time }));
      });
    }),
  });
  await giveName(page, "alice");
  await connected(page);
  const failed = page.locator('.msg[data-state="failed"]');
  const field = page.getByLabel("Message", { exact: true });

  reasons.push("The disk is full.", "Still full.");
  await say(page, "one");
  await failed.waitFor();
  assert.match(await failed.textContent(), /Not sent: The disk is full\./);
  assert.match(await page.locator("#announcer").textContent(), /Not sent: The disk is full\./);
  await page.getByRole("button", { name: "Try again" }).click();
  await until("it failed again", async () => /Still full/.test(await failed.textContent()));
  // What is written meanwhile does not wait for it.
  await say(page, "two");
  await until("two is sent", async () => (await messages(page)).some(message => message.text === "two" && message.state === "sent"));
  await page.getByRole("button", { name: "Try again" }).click();
  await shows(page, ["two", "one"]);

  reasons.push("No.");
  await say(page, "thre");
  await failed.waitFor();
  await page.getByRole("button", { name: "Edit" }).click();
  assert.equal(await field.inputValue(), "thre");
  await shows(page, ["two", "one"]);
  await field.press("End");
  await page.keyboard.type("e");
  await page.keyboard.press("Enter");
  await shows(page, ["two", "one", "three"]);

  reasons.push("No.");
  await say(page, "four");
  await failed.waitFor();
  await page.getByRole("button", { name: "Delete" }).click();
  await shows(page, ["two", "one", "three"]);
});

scenario("a message shown to others but not stored is marked, not taken for kept", {}, async ({ open }) => {
  const page = await open("/#lobby", {
    prepare: target => target.routeWebSocket(/websocket/, socket => socket.onMessage(data => {
      const frame = JSON.parse(data);
      if (frame.name) return socket.send(JSON.stringify({ ready: true }));
      socket.send(JSON.stringify({ name: "alice", message: frame.message, timestamp: 1000, id: frame.id }));
      socket.send(JSON.stringify({ error: "It could not be stored.", id: frame.id }));
    })),
  });
  await giveName(page, "alice");
  await connected(page);
  await say(page, "hello");
  await until("it is marked", async () => (await messages(page))[0]?.state === "failed");
  assert.match(await page.locator(".msg .state").textContent(), /Not sent: It could not be stored\./);
});

scenario("more waiting messages than can be kept stay in the text field", {}, async ({ open }) => {
  const page = await open("/#lobby", { prepare: target => target.routeWebSocket(/websocket/, () => { /* never answers */ }) });
  await giveName(page, "alice");
  for (let n = 0; n < 100; n += 1) await say(page, `w${n}`);
  await say(page, "one too many");
  assert.equal(await page.getByLabel("Message", { exact: true }).inputValue(), "one too many");
  assert.match(await page.locator("#composer-note").textContent(), /Too many messages are waiting/);
  assert.equal((await messages(page)).length, 100);
});
