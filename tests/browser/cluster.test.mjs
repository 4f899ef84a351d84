// A page at a cluster of three, run by scripts/cluster.sh: nodes are killed, frozen and stopped under it.

import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import assert from "node:assert/strict";
import { connected, messages, rosterIs, say, scenario, SERVER_AWAY, shows, useBrowser } from "./support/people.mjs";
import { until } from "./support/wait.mjs";

useBrowser();

const REPO = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

/** A row of free ports: the first of `count`. */
async function freePorts(count) {
  for (let tries = 0; tries < 50; tries += 1) {
    const base = 20_000 + Math.floor(Math.random() * 10_000);
    const probes = await Promise.allSettled(Array.from({ length: count }, (_, nth) => new Promise((done, fail) => {
      const probe = createServer().once("error", fail).listen(base + nth, "127.0.0.1", () => probe.close(done));
    })));
    if (probes.every(probe => probe.status === "fulfilled")) return base;
  }
  throw new Error("no free ports");
}

class Cluster {
  static async up() {
    const cluster = new Cluster();
    cluster.dir = mkdtempSync(join(tmpdir(), "parley-cluster-"));
    cluster.http = await freePorts(3);
    cluster.env = {
      ...process.env,
      PARLEY_BIN: resolve(REPO, process.env.PARLEY_BIN ?? "target/debug/parley"),
      PARLEY_CLUSTER_DIR: cluster.dir,
      PARLEY_HTTP_BASE: String(cluster.http),
      PARLEY_CLUSTER_BASE: String(await freePorts(3)),
      PARLEY_EXTRA_TOML: "limits.interval_ms = 0",
    };
    try {
      await cluster.run("up", "3");
    } catch (error) {
      await cluster.end();
      throw error;
    }
    return cluster;
  }

  async run(...words) {
    return promisify(execFile)(join(REPO, "scripts/cluster.sh"), words, { env: this.env });
  }

  url(nth) {
    return `http://127.0.0.1:${this.http + nth - 1}`;
  }

  async end() {
    // What is frozen goes on, and what is stuck is killed.
    await this.run("clean").catch(() => {});
    rmSync(this.dir, { recursive: true, force: true });
  }
}

function clusterScenario(name, act) {
  scenario(name, { allow: [SERVER_AWAY] }, async tools => {
    const cluster = await Cluster.up();
    try {
      const enter = (who, room, nth, options = {}) => tools.enterAt(cluster.url(nth), who, room, options);
      await act({ cluster, enter });
    } finally {
      await cluster.end();
    }
  });
}

const knows = (page, count) => until(`the page knows ${count} nodes`, () =>
  page.evaluate(wanted => JSON.parse(sessionStorage.getItem("parley.nodes"))?.length === wanted, count));

const sent = page => until("all is sent", async () => (await messages(page)).every(message => message.state === "sent"));

for (const verb of ["kill", "stop"]) {
  clusterScenario(`people on three nodes talk on when one of them is gone: ${verb}`, async ({ cluster, enter }) => {
    const people = [];
    for (const [at, who] of ["alice", "bob", "carol"].entries()) people.push(await enter(who, "lobby", at + 1));
    const [alice, bob, carol] = people;
    for (const page of people) await knows(page, 3);
    await say(alice, "from n1");
    await shows(carol, ["from n1"]);
    await cluster.run(verb, "1");
    await say(alice, "from n1, which is gone");
    await say(bob, "from n2");
    await connected(alice);
    for (const page of people) {
      await until("all three are there", async () => (await messages(page)).length === 3);
      await sent(page);
    }
    const seen = await messages(alice);
    for (const page of [bob, carol]) assert.deepEqual(await messages(page), seen, "all see one order");
    await rosterIs(bob, ["bob", "alice", "carol"]);

    await cluster.run("start", "1");
    const dave = await enter("dave", "lobby", 1);
    await shows(dave, seen.map(message => message.text));
  });
}

clusterScenario("a frozen node is left for another one", async ({ cluster, enter }) => {
  const alice = await enter("alice", "lobby", 1);
  const bob = await enter("bob", "lobby", 2);
  await knows(alice, 3);
  await cluster.run("pause", "1");
  await say(alice, "into the ice");
  await until("bob hears it", async () => (await messages(bob)).some(message => message.text === "into the ice"), 60_000);
  await sent(alice);
  await cluster.run("resume", "1");
  await say(bob, "and on");
  await shows(alice, ["into the ice", "and on"]);
  await shows(bob, ["into the ice", "and on"]);
});
