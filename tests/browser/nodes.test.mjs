// A page that knows of other nodes goes on at one of them when its own dies. Here two single nodes on copies of one
// folder stand for two nodes of a cluster, and what they answer to `/api/cluster` is put in their mouths.

import { cpSync, rmSync } from "node:fs";
import assert from "node:assert/strict";
import { connected, fill, messages, rosterIs, say, scenario, SERVER_AWAY, shows, texts, useBrowser } from "./support/people.mjs";
import { Server } from "./support/server.mjs";
import { until } from "./support/wait.mjs";

useBrowser();

const away = { allow: [SERVER_AWAY] };

/** Two nodes with the same past, `n1` and `n2`; `act` gets the second one. */
function pair(name, act) {
  scenario(name, away, async tools => {
    const { server } = tools;
    await fill(server.url, "lobby", "bob", Array.from({ length: 150 }, (_, n) => `m${n}`));
    await server.kill();
    const other = await Server.start();
    try {
      await other.kill();
      rmSync(other.data, { recursive: true });
      cpSync(server.data, other.data, { recursive: true });
      await server.restart();
      other.env.PARLEY_HTTP_ALLOWED_ORIGINS = server.url;
      await other.restart();
      await act({ ...tools, other });
    } finally {
      await other.end();
    }
  });
}

/** Has each node answer to `/api/cluster` with both of them, in these states. */
function tellOf(servers, states = ["up", "up"]) {
  return async page => {
    for (const [at, server] of servers.entries()) {
      await page.route(`${server.url}/api/cluster`, async route => {
        // A dead node answers nothing here either.
        const answer = await route.fetch().catch(() => null);
        if (!answer) return route.abort("connectionrefused");
        const nodes = servers.map((one, nth) => ({ name: `n${nth + 1}`, url: one.url, state: states[nth] }));
        await route.fulfill({ response: answer, json: { node: `n${at + 1}`, nodes, shards: [] } });
      });
    }
  };
}

/** Remembers every phase the page goes through, and whether it ever showed the banner. */
async function watchPhases(page) {
  await page.evaluate(() => {
    window.phases = [];
    window.bannerSeen = false;
    const chat = document.getElementById("chat");
    new MutationObserver(() => window.phases.push(chat.dataset.phase)).observe(chat, { attributeFilter: ["data-phase"] });
    new MutationObserver(() => { window.bannerSeen ||= !document.getElementById("banner").hidden; })
      .observe(document.getElementById("banner"), { attributeFilter: ["hidden"] });
  });
}

const historyOf = async (server, room) =>
  (await (await fetch(`${server.url}/api/room/${room}/history?limit=1000`)).json()).messages;

const knows = (page, count) => until(`the page knows ${count} nodes`, () =>
  page.evaluate(wanted => JSON.parse(sessionStorage.getItem("parley.nodes"))?.length === wanted, count));

pair("its node dies, and nothing shows but the state", async ({ server, other, enter }) => {
  const alice = await enter("alice", "lobby", { prepare: tellOf([server, other]) });
  await knows(alice, 2);
  const before = await messages(alice);
  assert.equal(before.at(-1).text, "m149");
  await watchPhases(alice);
  await server.kill();
  await alice.locator('#chat[data-phase="reconnecting"]').waitFor();
  await say(alice, "said meanwhile");
  await connected(alice);
  await until("it is sent", async () => (await messages(alice)).at(-1).state === "sent");
  assert.deepEqual(await alice.evaluate(() => [[...new Set(window.phases)], window.bannerSeen]),
    [["reconnecting", "connected"], false]);
  const said = await historyOf(other, "lobby");
  assert.equal(said.at(-1).message, "said meanwhile");
  const shown = await messages(alice);
  assert.deepEqual(shown.slice(0, before.length), before, "what was shown stays");
  assert.equal(shown.length, before.length + 1, "and nothing comes twice");
  await rosterIs(alice, ["alice"]);

  // Older messages come from the node it talks to now.
  await alice.locator("#log").evaluate(log => { log.scrollTop = 0; });
  await until("the whole history is there", async () => (await texts(alice)).length === 151);
  assert.deepEqual(await texts(alice), said.map(message => message.message));

  // And back, when the other way round.
  await server.restart();
  await other.kill();
  await until("it is at home again", async () =>
    (await (await fetch(`${server.url}/api/cluster`)).json()).nodes[0].sessions === 1);
  await connected(alice);
});

pair("a message that was sent and never acknowledged is sent again, under its id", async ({ server, other, enter }) => {
  const alice = await enter("alice", "lobby", {
    prepare: async page => {
      await tellOf([server, other])(page);
      // The first node takes what is said and answers nothing any more.
      await page.routeWebSocket(url => url.host === new URL(server.url).host, socket => {
        const upstream = socket.connectToServer();
        socket.onMessage(frame => { if (!("message" in JSON.parse(frame))) upstream.send(frame); });
      });
    },
  });
  await knows(alice, 2);
  await say(alice, "on its way");
  await until("it is shown as sending", async () => (await messages(alice)).at(-1).state === "sending");
  await server.kill();
  await until("it is sent", async () => (await messages(alice)).at(-1).state === "sent");
  const [last] = (await historyOf(other, "lobby")).slice(-1);
  assert.equal(last.message, "on its way");
  assert.equal((await texts(alice)).filter(text => text === "on its way").length, 1);
  assert.equal((await messages(alice)).at(-1).ts, last.timestamp);
});

pair("a node that is down is not tried", async ({ server, other, enter }) => {
  let dialled = 0;
  const alice = await enter("alice", "lobby", {
    prepare: async page => {
      await tellOf([server, other], ["up", "down"])(page);
      page.on("websocket", socket => { if (socket.url().includes(new URL(other.url).host)) dialled += 1; });
    },
  });
  await until("it has asked", () => alice.evaluate(() =>
    performance.getEntriesByType("resource").filter(entry => entry.name.endsWith("/api/cluster")).length >= 2));
  await server.kill();
  await alice.locator("#banner").waitFor();
  assert.equal(dialled, 0);
  await server.restart();
  await connected(alice);
});
