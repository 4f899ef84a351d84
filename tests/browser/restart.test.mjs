// The connection goes and comes back; nothing that was said is lost, doubled or reordered.

import assert from "node:assert/strict";
import { connected, fill, giveName, messages, rosterIs, say, scenario, SERVER_AWAY, shows, texts, useBrowser } from "./support/people.mjs";
import { until } from "./support/wait.mjs";

useBrowser();

const away = { allow: [SERVER_AWAY] };

scenario("the server is killed and started again while people talk", away, async ({ server, enter }) => {
  const alice = await enter("alice", "lobby");
  const bob = await enter("bob", "lobby");
  await say(alice, "before 1");
  await shows(bob, ["before 1"]);
  await say(bob, "before 2");
  await shows(alice, ["before 1", "before 2"]);

  await server.kill();
  for (const page of [alice, bob]) await page.locator('#chat[data-phase="waiting"]').waitFor();
  await alice.locator("#banner").waitFor();
  assert.match(await alice.locator("#banner").textContent(), /Reconnecting/);
  for (const n of [1, 2, 3]) {
    await say(alice, `alice while down ${n}`);
    await say(bob, `bob while down ${n}`);
  }
  const pending = (await messages(alice)).slice(2);
  assert.deepEqual(pending.map(message => [message.text, message.state, message.ts]),
    [1, 2, 3].map(n => [`alice while down ${n}`, "waiting", null]), "shown at once, as waiting");
  assert.equal(await alice.locator(".msg .state", { hasText: "Waiting for the connection" }).count(), 3, "and in words");

  await server.restart();
  await connected(alice);
  await connected(bob);
  await until("all of it arrived", async () => (await messages(alice)).length === 8 && (await messages(bob)).length === 8
    && [...await messages(alice), ...await messages(bob)].every(message => message.state === "sent"));
  const seen = await messages(alice);
  assert.deepEqual(seen, await messages(bob), "both see one order");
  assert.deepEqual(seen.slice(0, 2).map(message => message.text), ["before 1", "before 2"]);
  for (const who of ["alice", "bob"]) {
    assert.deepEqual(seen.filter(message => message.name === who).slice(1).map(message => message.text),
      [1, 2, 3].map(n => `${who} while down ${n}`), "each in the order written");
  }
  assert.ok(seen.every((message, i) => i === 0 || message.ts > seen[i - 1].ts), "times strictly increase");
  await rosterIs(alice, ["alice", "bob"]);
  await rosterIs(bob, ["bob", "alice"]);

  const history = await (await fetch(`${server.url}/api/room/lobby/history?limit=1000`)).json();
  assert.deepEqual(history.messages.map(message => message.message), seen.map(message => message.text), "the history says the same");

  await say(alice, "after");
  await shows(bob, [...seen.map(message => message.text), "after"]);
});

scenario("killed again and again while messages are on their way", away, async ({ server, enter }) => {
  const alice = await enter("alice", "lobby");
  const bob = await enter("bob", "lobby");
  const written = [];
  for (let round = 0; round < 4; round += 1) {
    for (let n = 0; n < 8; n += 1) {
      written.push(`${round}.${n}`);
      await say(alice, written.at(-1));
      // In the middle of a row of messages, at a moment that nothing waits for.
      if (n === 4) await server.kill();
    }
    await server.restart();
    await connected(alice);
  }
  await shows(alice, written);
  await connected(bob);
  await shows(bob, written);
  assert.deepEqual(await messages(alice), await messages(bob));
});

scenario("what waits to be sent survives a reload of the page", {}, async ({ open }) => {
  let reachable = false;
  const alice = await open("/#lobby", {
    prepare: page => page.routeWebSocket(/websocket/, socket => {
      if (reachable) socket.connectToServer();
    }),
  });
  await giveName(alice, "alice");
  const written = ["kept 1", "kept 2", "kept 3"];
  for (const text of written) await say(alice, text);
  assert.deepEqual((await messages(alice)).map(message => message.state), ["waiting", "waiting", "waiting"]);
  await alice.getByLabel("Message", { exact: true }).fill("half a thou");

  reachable = true;
  await alice.reload();
  await connected(alice);
  await shows(alice, written);
  assert.equal(await alice.getByLabel("Message", { exact: true }).inputValue(), "half a thou");
  await alice.reload();
  await connected(alice);
  await shows(alice, written);
});

scenario("more was said than a reconnection brings: the gap shows and can be filled", away, async ({ server, enter }) => {
  const alice = await enter("alice", "lobby");
  await say(alice, "first");
  await shows(alice, ["first"]);
  const home = new URL(server.url).host;
  await server.kill();
  // While she is away it runs elsewhere, and 1250 messages are said.
  await server.restart("127.0.0.1:0");
  const many = Array.from({ length: 1250 }, (_, n) => `m${n}`);
  await fill(server.url, "lobby", "bob", many);
  await server.kill();
  await server.restart(home);

  await connected(alice);
  const gap = alice.getByRole("button", { name: "Some messages were skipped" });
  await gap.waitFor();
  await until("the newest are there", async () => (await texts(alice)).at(-1) === "m1249");
  assert.deepEqual(await texts(alice), ["first", ...many.slice(250)]);
  await gap.click();
  await until("the first page of the gap", async () => (await texts(alice)).length === 1101);
  assert.deepEqual(await texts(alice), ["first", ...many.slice(150)]);
  await gap.click();
  await until("the second page", async () => (await texts(alice)).length === 1201);
  await gap.click();
  await until("the gap is gone", async () => (await gap.count()) === 0);
  assert.deepEqual(await texts(alice), ["first", ...many]);
});

scenario("the roster does not flicker when the connection comes back", {}, async ({ enter }) => {
  let socket;
  const alice = await enter("alice", "lobby", {
    prepare: page => page.routeWebSocket(/websocket/, route => {
      socket = route;
      route.connectToServer();
    }),
  });
  await enter("bob", "lobby");
  await rosterIs(alice, ["alice", "bob"]);
  await alice.evaluate(() => {
    window.shortest = 2;
    new MutationObserver(() => {
      window.shortest = Math.min(window.shortest, document.querySelectorAll("#roster li").length);
    }).observe(document.getElementById("roster"), { childList: true });
  });
  const before = await alice.locator("#roster li").nth(1).elementHandle();
  await socket.close({ code: 1012, reason: "restart" });
  await alice.locator('#chat:not([data-phase="connected"])').waitFor();
  await connected(alice);
  await rosterIs(alice, ["alice", "bob"]);
  assert.equal(await alice.evaluate(() => window.shortest), 2);
  assert.equal(await before.evaluate(node => node.isConnected), true, "bob's row is still the same one");
});

scenario("a message that vanished with its node is moved, not doubled, when it comes again", {}, async ({ open }) => {
  // A server that relays, dies before it acks, and comes back without what it relayed.
  const sent = [];
  const page = await open("/#lobby", {
    prepare: target => target.routeWebSocket(/websocket/, socket => {
      const nth = sent.push([]);
      const tell = frame => socket.send(JSON.stringify(frame));
      socket.onMessage(data => {
        const frame = JSON.parse(data);
        sent[nth - 1].push(frame);
        if (frame.name) {
          if (nth === 2) tell({ name: "bob", message: "bob first", timestamp: 2000, id: "bob-1" });
          tell({ joined: "alice" });
          tell({ ready: true });
        } else if (nth === 1) {
          tell({ name: "alice", message: frame.message, timestamp: 1000, id: frame.id });
          socket.close({ code: 1011 });
        } else {
          tell({ name: "alice", message: frame.message, timestamp: 3000, id: frame.id });
          tell({ ack: frame.id, timestamp: 3000 });
        }
      });
    }),
  });
  await giveName(page, "alice");
  await connected(page);
  await say(page, "mine");
  await until("it came back", () => sent.length === 2);
  await shows(page, ["bob first", "mine"]);
  assert.deepEqual((await messages(page)).map(message => message.ts), [2000, 3000]);
  assert.equal(sent[0][1].id, sent[1][1].id, "sent again under the same id");
});

scenario("a server that answers nothing is given up, and asked again", {}, async ({ open }) => {
  let nth = 0;
  const page = await open("/#lobby", {
    prepare: async target => {
      await target.clock.install();
      await target.routeWebSocket(/websocket/, socket => {
        nth += 1;
        const mute = nth === 1;
        if (!mute) socket.connectToServer();
      });
    },
  });
  await giveName(page, "alice");
  await until("it dialled", () => nth === 1);
  await page.clock.runFor(16_000);
  await until("it dialled again", async () => {
    await page.clock.runFor(1_000);
    return nth >= 2;
  });
  await connected(page);
});

for (const [code, error, title] of [
  [1008, undefined, /refused the connection/],
  [1009, "Name too long.", /too long/],
]) {
  scenario(`a close with ${code} is explained and not repeated for ever`, {}, async ({ open }) => {
    let dialled = 0;
    const page = await open("/#lobby", {
      prepare: target => target.routeWebSocket(/websocket/, socket => {
        dialled += 1;
        if (dialled > 1) return socket.connectToServer();
        socket.onMessage(() => {
          if (error) socket.send(JSON.stringify({ error }));
          socket.close({ code });
        });
      }),
    });
    await giveName(page, "alice");
    await page.locator("#stopped").waitFor();
    assert.match(await page.locator("#stopped-title").textContent(), title);
    if (error) assert.match(await page.locator("#stopped-text").textContent(), new RegExp(error));
    assert.equal(dialled, 1);
    await page.getByRole("button", { name: "Try again" }).click();
    await connected(page);
    assert.equal(await page.locator("#stopped").isVisible(), false);
  });
}

scenario("a wait can be cut short, and being online again cuts it short by itself", away, async ({ server, enter }) => {
  const alice = await enter("alice", "lobby");
  const phase = () => alice.locator("#chat").getAttribute("data-phase");
  const seconds = async () => Number((await alice.locator("#banner-text").textContent()).match(/in (\d+) s/)?.[1]);
  await server.kill();
  await until("it waits for some seconds", async () => (await seconds()) >= 3, 30_000);
  await server.restart();
  await alice.getByRole("button", { name: "Retry now" }).click();
  assert.notEqual(await phase(), "waiting");
  await connected(alice);

  await server.kill();
  await alice.context().setOffline(true);
  await alice.locator('#chat[data-phase="offline"]').waitFor();
  assert.equal(await alice.locator("#status-text").textContent(), "Offline");
  await until("it waits for some seconds", async () => (await seconds()) >= 4, 30_000);
  await server.restart();
  await alice.context().setOffline(false);
  // Sooner than the wait would have ended.
  await until("it dials at once", async () => !["waiting", "offline"].includes(await phase()), 2_500);
  await connected(alice);
});

scenario("connection news is said once, and the backlog is not read out", away, async ({ server, enter }) => {
  const watchAnnouncements = page => page.addInitScript(() => {
    window.heard = [];
    document.addEventListener("DOMContentLoaded", () => {
      new MutationObserver(() => {
        const text = document.getElementById("announcer").textContent;
        if (text) window.heard.push(text);
      }).observe(document.getElementById("announcer"), { childList: true, characterData: true, subtree: true });
      // What a screen reader would read out: nodes added while the log is live.
      window.readOut = [];
      new MutationObserver(changes => {
        if (document.getElementById("log").getAttribute("aria-live") !== "polite") return;
        for (const change of changes) for (const node of change.addedNodes) {
          if (node.classList?.contains("msg")) window.readOut.push(node.querySelector(".bubble").textContent);
        }
      }).observe(document.getElementById("list"), { childList: true });
    });
  });
  await fill(server.url, "lobby", "bob", ["old 1", "old 2", "old 3"]);
  const alice = await enter("alice", "lobby", { prepare: watchAnnouncements });
  await shows(alice, ["old 1", "old 2", "old 3"]);
  await until("the log is live", async () => (await alice.locator("#log").getAttribute("aria-live")) === "polite");
  await fill(server.url, "lobby", "carol", ["new"]);
  await shows(alice, ["old 1", "old 2", "old 3", "new"]);
  assert.deepEqual(await alice.evaluate(() => window.readOut), ["new"]);
  await until("connected is said", async () => (await alice.evaluate(() => window.heard.at(-1))) === "Connected.");

  await server.kill();
  await until("the loss is said", async () => (await alice.evaluate(() => window.heard.at(-1))) === "Connection lost. Reconnecting.");
  await until("some attempts were made", async () => /in [2-9] s/.test(await alice.locator("#banner-text").textContent()), 30_000);
  await server.restart();
  await connected(alice);
  await until("the return is said", async () => (await alice.evaluate(() => window.heard.at(-1))) === "Connected.");
  assert.deepEqual(await alice.evaluate(() => window.heard), ["Connected.", "Connection lost. Reconnecting.", "Connected."]);
});
