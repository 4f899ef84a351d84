// People in browsers, and the scenario that a test runs them in.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { chromium } from "playwright-core";
import WebSocket from "ws";
import { Server } from "./server.mjs";
import { until } from "./wait.mjs";

const EXECUTABLE = process.env.CHROMIUM ?? "/usr/bin/chromium";
const ARGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

/** What Chromium itself writes to the console when the server is away; the page cannot prevent it. */
export const SERVER_AWAY = /WebSocket connection to '[^']*' failed|net::ERR_(CONNECTION|EMPTY)/;

let browser;

/** Opens one browser for a file's tests. */
export function useBrowser() {
  // The user data folder is a fresh temporary one, made and removed by the launcher.
  before(async () => { browser = await chromium.launch({ executablePath: EXECUTABLE, args: ARGS, headless: true }); });
  after(() => browser?.close());
}

/**
 * A test with a server of its own. `act` gets `{ server, open, enter, enterAt }`. When it is over, no page
 * may have written an error to its console (but for `allow`), thrown, or hit the content policy.
 */
export function scenario(name, { env, allow = [] }, act) {
  test(name, { timeout: 120_000 }, async () => {
    const server = await Server.start(env);
    const contexts = [];
    const complaints = [];
    const open = async (path = "/", options = {}) => {
      const { context = await browser.newContext({ locale: "en-GB", viewport: { width: 1100, height: 720 }, ...options }) } = options;
      contexts.push(context);
      const page = await context.newPage();
      page.setDefaultTimeout(15_000);
      watch(page, complaints, allow);
      await options.prepare?.(page);
      await page.goto(new URL(path, server.url).href);
      return page;
    };
    const enterAt = async (url, name, room, options) => {
      const page = await open(new URL(room ? `/#${room}` : "/", url).href, options);
      await giveName(page, name);
      if (room) await connected(page);
      return page;
    };
    const enter = (name, room, options) => enterAt(server.url, name, room, options);
    try {
      await act({ server, open, enter, enterAt });
      assert.deepEqual(complaints, [], "a page complained");
    } catch (error) {
      error.message += `\n--- pages said:\n${complaints.join("\n")}\n--- server said:\n${server.log.slice(-20).join("\n")}`;
      throw error;
    } finally {
      for (const context of contexts) await context.close();
      await server.end();
    }
  });
}

function watch(page, complaints, allow) {
  const note = text => {
    if (!allow.some(pattern => pattern.test(text))) complaints.push(text);
  };
  page.on("pageerror", error => note(`uncaught: ${error.stack}`));
  page.on("console", message => {
    if (message.type() === "error") note(`${message.text()} (${message.location().url})`);
  });
  page.addInitScript(() => document.addEventListener("securitypolicyviolation", event =>
    console.error(`content policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`)));
}

export async function giveName(page, name) {
  await page.getByLabel("Your name").fill(name);
  await page.keyboard.press("Enter");
}

/** Waits until the page says that it is connected. */
export async function connected(page) {
  await page.locator('#chat[data-phase="connected"]').waitFor();
}

/** Types a message and sends it, without waiting for anything. */
export async function say(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.keyboard.press("Enter");
}

/** What the log shows, top to bottom: `{ name, text, state, ts }`. */
export function messages(page) {
  return page.locator("#list .msg").evaluateAll(nodes => nodes.map(node => ({
    name: node.querySelector(".name").textContent,
    text: node.querySelector(".bubble").textContent,
    state: node.dataset.state,
    ts: node.dataset.ts ? Number(node.dataset.ts) : null,
  })));
}

export const texts = async page => (await messages(page)).map(message => message.text);

/** Waits until the log shows exactly these texts in this order, every one of them sent. */
export async function shows(page, expected) {
  let last;
  await until(`the log shows ${JSON.stringify(expected).slice(0, 300)}`, async () => {
    last = await messages(page);
    return last.every(message => message.state === "sent")
      && JSON.stringify(last.map(message => message.text)) === JSON.stringify(expected);
  }).catch(error => {
    assert.deepEqual(last?.map(message => `${message.text} [${message.state}]`), expected.map(text => `${text} [sent]`), error.message);
    throw error;
  });
}

/** The names in the roster, as shown. */
export function roster(page) {
  return page.locator("#roster li .name").allTextContents();
}

export async function rosterIs(page, expected) {
  await until(`the roster is ${expected}`, async () => JSON.stringify(await roster(page)) === JSON.stringify(expected));
}

/** Says `texts` in a room over a bare socket, as fast as the server takes them, until all are acked. */
export async function fill(url, room, name, texts) {
  const socket = new WebSocket(`${url.replace("http", "ws")}/api/room/${room}/websocket`);
  const acked = new Set();
  await new Promise((done, fail) => {
    let next = 0;
    const feed = () => {
      // Few enough in flight that the server never has a reason to make us wait.
      while (next < texts.length && next - acked.size < 32) {
        socket.send(JSON.stringify({ message: texts[next], id: `${name}-${room}-${texts[next]}` }));
        next += 1;
      }
    };
    socket.on("error", fail);
    socket.on("close", code => fail(new Error(`closed with ${code} while filling`)));
    socket.on("open", () => socket.send(JSON.stringify({ name })));
    socket.on("message", data => {
      const frame = JSON.parse(data);
      if (frame.error) fail(new Error(frame.error));
      if (frame.ready) feed();
      if (!frame.ack) return;
      acked.add(frame.ack);
      feed();
      if (acked.size === texts.length) done();
    });
  });
  socket.removeAllListeners("close");
  socket.terminate();
}
