// The chat page. One visit to one room is one `visit` object; leaving the room drops it, and every
// late timer, fetch and socket of it finds that it is no longer the current one and does nothing.
//
// The way of a message typed here: composer → outbox (shown at once, pending) → socket → it comes
// back with a timestamp and takes its place in the log → its ack takes it out of the outbox. An
// entry stays in the outbox, under one id, until it is acked; after a lost connection all that is
// left there is sent again in order, and the server recognises what it already has.
//
// The page came from one node of a cluster, perhaps a cluster of one, and learns of the others from
// whichever node it talks to. When that one dies it goes on at another, where nothing is missing.
(() => {
"use strict";

// ---------------------------------------------------------------------------------------------
// Limits. Lengths are UTF-16 code units, as the server counts them.

const NAME_MAX = 32;
const ROOM_MAX = 32;
const TEXT_MAX = 256;
const COUNTER_FROM = 56;            // characters left when the counter appears

const BACKLOG = 100;                // messages a fresh connection is given
const HISTORY_PAGE = 100;           // messages asked for at a time when scrolling back
const KEPT_MAX = 2000;              // messages in the document…
const KEPT_AFTER_TRIM = 1500;       // …and what a trim leaves
const OUTBOX_MAX = 100;             // messages that may wait to be acked
const OWN_IDS_MAX = 500;            // remembered ids of what was written here

const GROUP_MS = 5 * 60_000;        // messages of one person closer than this are one group
const ANSWER_MAX_MS = 15_000;       // a socket that answers nothing for this long is given up
const BACKOFF_FIRST_MS = 250;
const BACKOFF_MAX_MS = 10_000;
const STABLE_MS = 5_000;            // a connection that lived this long resets the backoff
const TICK_MS = 15_000;             // how often we look whether the machine slept…
const SLEPT_MS = 90_000;            // …and the gap that tells (hidden tabs tick once a minute)
const ANNOUNCE_MS = 1_000;          // connection news shorter than this is not read out

const NODES_MAX = 16;               // nodes that are remembered
const NODES_MS = 30_000;            // how often a page of a cluster asks which nodes there are
const NODE_ANSWER_MAX_MS = 8_000;   // and how long its node may take to say so

// ---------------------------------------------------------------------------------------------
// State.

/** The name given on this page; null until it is. */
let me = null;
/** The room we are in; null on the first screens. See newVisit(). */
let visit = null;
/** Whether the log follows new messages, because its end is in view. */
let atBottom = true;
/** The nodes we may talk to, as base URLs. Alone, a node stands here by itself. */
let nodes = [location.origin];
/** The node we talk to, or try to. */
let base = location.origin;
/** When a node last failed us. */
const failedAt = new Map();
/** Ids of messages written in this browser, so that they are shown as ours after a reload too. */
const ownIds = new Set();

function newVisit(room) {
  return {
    room,
    // The connection. `phase` is what the status line shows.
    phase: "connecting",            // connecting | connected | reconnecting | waiting | stopped
    socket: null,
    opened: false,                  // this socket's handshake succeeded
    ready: false,                   // this socket's backlog is complete
    everReady: false,
    attempt: 0,                     // failures since the last stable connection
    retryAt: 0,
    timers: {},
    lastError: "",                  // the server's reason, when a close follows
    // Messages that have a timestamp, ordered by it, and the ways to find one again.
    log: [],
    byId: new Map(),
    byTime: new Map(),
    hasOlder: false,
    older: "idle",                  // idle | loading | failed
    gapAfter: 0,                    // set between {"gap":true} and the message that follows it
    unread: 0,
    // Messages of ours that are not acked, in the order they were written.
    outbox: [],
    inFlight: null,                 // the one that is sent and neither echoed, acked nor refused
    holdUntil: 0,                   // the limiter's wish
    // The roster: how many sessions each name has; `arriving` collects it until `ready`.
    people: new Map(),
    arriving: null,
  };
}

// ---------------------------------------------------------------------------------------------
// Small helpers.

const $ = id => document.getElementById(id);

/** Storage may be forbidden or full: the page then simply does not remember. */
function recall(kind, key) {
  try { return JSON.parse(window[kind].getItem(`parley.${key}`)); } catch { return null; }
}

function remember(kind, key, value) {
  try {
    if (value === null) window[kind].removeItem(`parley.${key}`);
    else window[kind].setItem(`parley.${key}`, JSON.stringify(value));
  } catch { /* not remembered */ }
}

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Changes text only when it differs, so that live regions stay silent when nothing changed. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** The first `max` UTF-16 units, without half a character at the end. */
function clip(text, max) {
  if (text.length <= max) return text;
  const cut = text.slice(0, max);
  return /[\uD800-\uDBFF]$/.test(cut) ? cut.slice(0, -1) : cut;
}

/** Half a character is not valid Unicode, so JSON made of it would be refused by the server. */
function wellFormed(text) {
  return text.replace(/\p{Surrogate}/gu, "\uFFFD");
}

/** A fresh id. randomUUID does not exist on plain http away from localhost. */
function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
}

function rememberOwn(id) {
  // Another tab may have written meanwhile, hence read again before writing.
  const known = recall("localStorage", "own");
  if (Array.isArray(known)) known.forEach(other => ownIds.add(other));
  ownIds.delete(id);
  ownIds.add(id);
  remember("localStorage", "own", [...ownIds].slice(-OWN_IDS_MAX));
}

function secondsUntil(time) {
  return Math.max(1, Math.ceil((time - Date.now()) / 1000));
}

const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;

// ---------------------------------------------------------------------------------------------
// Rooms and their names.

/** What people type becomes a name that is easy to say and to link to. */
function normaliseRoom(text) {
  return text.replace(/[^a-zA-Z0-9_-]/g, "").replace(/_/g, "-").toLowerCase();
}

const isPrivate = room => /^[0-9a-f]{64}$/.test(room);

function roomProblem(room) {
  if (room === "") return "A room name needs letters, digits or hyphens.";
  if (room.length > ROOM_MAX && !isPrivate(room)) return `A room name has at most ${ROOM_MAX} characters.`;
  return null;
}

const roomLabel = room => isPrivate(room) ? "Private room" : `#${room}`;

function roomFromHash() {
  const raw = location.hash.slice(1);
  try { return normaliseRoom(decodeURIComponent(raw)); } catch { return normaliseRoom(raw); }
}

/** People also paste whole links, or just the 64 digits, where a name is asked for. */
function roomFromText(text) {
  return normaliseRoom(text.includes("#") ? text.slice(text.lastIndexOf("#") + 1) : text);
}

const roomLink = room => `${location.origin}${location.pathname}#${room}`;

// ---------------------------------------------------------------------------------------------
// Where we connect to. Everything that reaches a server goes through the first two.

function apiUrl(path, query = {}) {
  const url = new URL(path, base);
  for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
  return url;
}

function socketUrl(room, since) {
  const url = apiUrl(`/api/room/${encodeURIComponent(room)}/websocket`, since ? { since } : {});
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

async function fetchHistory(room, query) {
  const response = await fetch(apiUrl(`/api/room/${encodeURIComponent(room)}/history`, query));
  if (!response.ok) throw new Error(`history answered ${response.status}`);
  return response.json();
}

/** Whether the server says for certain that this room does not exist. */
async function isMissing(room) {
  try {
    const url = apiUrl(`/api/room/${encodeURIComponent(room)}/history`, { limit: 1 });
    const response = await fetch(url, { signal: AbortSignal.timeout(NODE_ANSWER_MAX_MS) });
    return response.status === 404;
  } catch {
    return false;
  }
}

/** Asks the node, and if it does not answer the others in turn. */
async function fetchAnywhere(path, options) {
  for (let left = nodes.length; ; left -= 1) {
    try {
      return await fetch(apiUrl(path), { ...options, signal: AbortSignal.timeout(NODE_ANSWER_MAX_MS) });
    } catch (error) {
      if (left <= 1) throw error;
      leaveNode();
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The nodes of the cluster.

/** Closes after which another node is the better choice: it died, failed, or is going to restart. */
const NODE_LOST = new Set([1006, 1011, 1012]);

/** Goes on to the node whose last failure is longest ago. A dead node's people spread over the rest. */
function leaveNode() {
  failedAt.set(base, Date.now());
  const trouble = url => failedAt.get(url) ?? 0;
  const order = nodes.map(url => ({ url, random: Math.random() }))
    .sort((a, b) => trouble(a.url) - trouble(b.url) || a.random - b.random);
  base = order[0].url;
}

/** The base URL of a node as we use it, or null if this page cannot reach it. */
function usableUrl(text) {
  try {
    const url = new URL(text);
    // Browsers forbid a page that came by https to talk to one that does not.
    const schemes = location.protocol === "https:" ? ["https:"] : ["http:", "https:"];
    return schemes.includes(url.protocol) ? url.origin : null;
  } catch {
    return null;
  }
}

/** Asks our node which nodes there are. Throws when it does not answer at all. */
async function learnNodes() {
  const asked = base;
  const response = await fetch(apiUrl("/api/cluster"), { signal: AbortSignal.timeout(NODE_ANSWER_MAX_MS) });
  let view = null;
  try { view = await response.json(); } catch { /* not what we asked for */ }
  if (!response.ok || !Array.isArray(view?.nodes)) return;
  // The node that answers may call itself otherwise than the URL by which we reached it.
  const others = view.nodes.filter(node => node.name !== view.node && node.state !== "down" && node.state !== "refused");
  const urls = others.map(node => usableUrl(node.url)).filter(url => url !== null);
  // The page's own address may be that of no node, but of whatever leads to one of them.
  nodes = [...new Set([asked, ...urls, location.origin])].slice(0, NODES_MAX);
  remember("sessionStorage", "nodes", nodes.length > 1 ? nodes : null);
}

function recallNodes() {
  const known = recall("sessionStorage", "nodes");
  if (!Array.isArray(known)) return;
  const urls = known.map(usableUrl).filter(url => url !== null);
  nodes = [...new Set([location.origin, ...urls])].slice(0, NODES_MAX);
}

/** Learns which nodes there are on a new connection and, while there are several, from time to time. */
async function watchNodes(v) {
  const socket = v.socket;
  let answered = true;
  try { await learnNodes(); } catch { answered = false; }
  if (v !== visit || v.socket !== socket || nodes.length < 2) return;
  // A node that is frozen or cut off closes nothing; with others to go to, do not wait for it.
  if (!answered) return abandonSocket(v);
  clearTimeout(v.timers.nodes);
  v.timers.nodes = setTimeout(() => watchNodes(v), NODES_MS * (0.8 + Math.random() * 0.4));
}

// ---------------------------------------------------------------------------------------------
// Screens. The URL's hash says which room; route() makes the page follow it.

function route() {
  const room = roomFromHash();
  if (visit && visit.room === room) return showHash(room);
  leaveRoom();
  if (me === null) return showNameForm(room);
  if (location.hash.length <= 1) return showRoomForm();
  const problem = roomProblem(room);
  if (problem) return showRoomForm(problem);
  enterRoom(room);
}

function showScreen(name) {
  $("welcome").hidden = name === "chat";
  $("name-form").hidden = name !== "name";
  $("room-form").hidden = name !== "room";
  $("chat").hidden = name !== "chat";
}

function showNameForm(room) {
  showScreen("name");
  document.title = "Parley";
  const known = recall("localStorage", "name");
  if (!$("name-input").value && typeof known === "string") $("name-input").value = clip(known, NAME_MAX);
  const target = room && !roomProblem(room) ? room : null;
  setText($("name-go"), !target ? "Continue" : isPrivate(target) ? "Enter the private room" : `Enter #${target}`);
  $("name-input").focus();
  $("name-input").select();
}

function submitName(event) {
  event.preventDefault();
  const name = wellFormed(clip($("name-input").value.trim(), NAME_MAX));
  setText($("name-problem"), name ? "" : "Please type a name first.");
  if (!name) return $("name-input").focus();
  me = name;
  remember("localStorage", "name", name);
  remember("sessionStorage", "name", name);
  route();
}

function showRoomForm(problem = "") {
  showScreen("room");
  document.title = "Parley";
  setText($("room-greeting"), me);
  setText($("room-problem"), problem);
  $("private-go").disabled = false;
  $("room-input").focus();
}

/** Shows what a typed name turns into, before it surprises anybody. */
function previewRoom() {
  const typed = $("room-input").value;
  const room = roomFromText(typed);
  // A link or a private id may be longer; anything else ends at the limit, like the other fields.
  if (!typed.includes("#") && room.length > ROOM_MAX && !/^[0-9a-f]{33,64}$/.test(room)) {
    $("room-input").value = clip(typed, ROOM_MAX);
    return previewRoom();
  }
  setText($("room-problem"), "");
  const differs = room !== "" && room !== typed;
  setText($("room-preview"), !differs ? "" : isPrivate(room) ? "Opens that private room." : `Opens #${room}`);
}

function submitRoom(event) {
  event.preventDefault();
  const room = roomFromText($("room-input").value);
  const problem = roomProblem(room);
  setText($("room-problem"), problem ?? "");
  if (problem) return $("room-input").focus();
  goTo(room);
}

async function createPrivateRoom() {
  const button = $("private-go");
  button.disabled = true;
  setText($("room-problem"), "");
  try {
    const response = await fetchAnywhere("/api/room", { method: "POST" });
    if (!response.ok) throw new Error(`answered ${response.status}`);
    const room = (await response.text()).trim();
    if (!isPrivate(room)) throw new Error("answered something else");
    if (!visit && !$("room-form").hidden) goTo(room);
  } catch {
    setText($("room-problem"), "The server could not make a private room just now. Please try again.");
  }
  button.disabled = false;
}

function goTo(room) {
  $("room-input").value = "";
  setText($("room-preview"), "");
  // Setting the hash makes an entry in the browser's history, so Back leaves the room.
  if (location.hash !== `#${room}`) location.hash = `#${room}`;
  route();
}

function enterRoom(room) {
  showHash(room);
  visit = newVisit(room);
  drawRoom(visit);
  showScreen("chat");
  // On a touch screen focusing the text field would raise the keyboard over the conversation.
  (matchMedia("(pointer: fine)").matches ? $("text") : $("room-title")).focus();
  restoreOutbox(visit);
  connect(visit);
}

/** A hash typed by hand is shown as the room it stands for. */
function showHash(room) {
  if (location.hash !== `#${room}`) history.replaceState(null, "", `#${room}`);
}

function drawRoom(v) {
  const secret = isPrivate(v.room);
  $("list").replaceChildren();
  $("roster").replaceChildren();
  $("log").setAttribute("aria-live", "off");
  atBottom = true;
  $("room-icon").setAttribute("href", secret ? "#icon-lock" : "#icon-hash");
  setText($("room-title"), secret ? `Private room ${v.room.slice(0, 6)}` : v.room);
  $("text").placeholder = secret ? "Message this private room" : `Message #${v.room}`;
  $("text").value = recall("sessionStorage", `draft.${v.room}`) ?? "";
  $("intro-icon").setAttribute("href", secret ? "#icon-lock" : "#icon-hash");
  setText($("intro-title"), secret ? "This is a private room" : `Welcome to #${v.room}`);
  setText($("intro-text"), inviteText(v.room));
  setText($("people-count"), "");
  setText($("people-badge"), "");
  noteComposer("");
  showStopped(null);
  fitComposer();
  drawOlder(v);
  drawJump();
}

function leaveRoom() {
  if (!visit) return;
  const v = visit;
  visit = null;
  Object.values(v.timers).forEach(clearTimeout);
  if (v.socket) v.socket.close(1000);
  closePeople();
  if ($("invite").open) $("invite").close();
  setText($("announcer"), "");
}

function leaveToRoomForm() {
  history.pushState(null, "", location.pathname + location.search);
  route();
}

// ---------------------------------------------------------------------------------------------
// The connection.

function connect(v) {
  clearTimeout(v.timers.retry);
  clearInterval(v.timers.countdown);
  const since = v.log.length ? v.log[v.log.length - 1].ts : 0;
  const socket = new WebSocket(socketUrl(v.room, since));
  Object.assign(v, { socket, opened: false, ready: false, fresh: !since, lastError: "", arriving: new Map() });
  setPhase(v, v.everReady || v.attempt ? "reconnecting" : "connecting");
  socket.onopen = () => {
    if (v.socket !== socket) return;
    v.opened = true;
    socket.send(JSON.stringify({ name: me }));
  };
  socket.onmessage = event => {
    if (v.socket === socket) receive(v, event.data);
  };
  socket.onclose = event => {
    if (v.socket === socket) disconnected(v, event.code);
  };
  expectAnswer(v);
}

/** A socket whose other end silently went away looks open for minutes; do not wait for that. */
function expectAnswer(v) {
  clearTimeout(v.timers.answer);
  v.timers.answer = setTimeout(() => abandonSocket(v), ANSWER_MAX_MS);
}

function abandonSocket(v, code = 1006) {
  if (!v.socket) return;
  const socket = v.socket;
  disconnected(v, code);
  socket.close();
}

async function disconnected(v, code) {
  const opened = v.opened;
  v.socket = null;
  v.ready = false;
  v.inFlight = null;
  v.arriving = null;
  clearTimeout(v.timers.answer);
  clearTimeout(v.timers.stable);
  clearTimeout(v.timers.nodes);
  if (v !== visit) return;
  // The backlog of the next connection is caught up with, not read out.
  $("log").setAttribute("aria-live", "off");
  if (code === 1008 || code === 1009) return stop(v, refusal(code, v.lastError));
  setPhase(v, v.everReady || v.attempt ? "reconnecting" : "connecting");
  drawOutbox(v);
  // A refused upgrade looks like any failed connection to a script, so ask the API for the reason.
  if (!opened && isPrivate(v.room) && await isMissing(v.room)) {
    if (v === visit && !v.socket) stop(v, MISSING);
    return;
  }
  if (v !== visit || v.socket) return;
  if (NODE_LOST.has(code)) leaveNode();
  scheduleRetry(v);
}

/** The wait grows once every node has been tried. */
function scheduleRetry(v) {
  const round = Math.floor(v.attempt / nodes.length);
  const longest = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** round);
  const delay = longest / 2 + Math.random() * longest / 2;
  v.attempt += 1;
  v.retryAt = Date.now() + delay;
  v.timers.retry = setTimeout(() => connect(v), delay);
  v.timers.countdown = setInterval(() => drawStatus(v), 500);
  setPhase(v, isLasting(v) ? "waiting" : "reconnecting");
}

/** The first, nearly immediate attempt at each node is not worth a banner that comes and goes. */
const isLasting = v => v.attempt > nodes.length;

function retryNow() {
  const v = visit;
  if (!v || v.socket) return;
  showStopped(null);
  connect(v);
}

function stop(v, reason) {
  v.stopped = reason;
  setPhase(v, "stopped");
  showStopped(reason);
  drawOutbox(v);
}

const MISSING = {
  title: "This private room does not exist here",
  text: "Its link may be incomplete, or belong to another server. Ask whoever sent it for the whole link.",
};

function refusal(code, error) {
  return code === 1009
    ? { title: "The server closed the connection: too long", text: error || "Something we sent was longer than it allows." }
    : { title: "The server refused the connection", text: error || "It does not accept this page or what it sent." };
}

function connectionReady(v) {
  if (v.fresh || !v.everReady) v.hasOlder = v.log.length >= BACKLOG;
  v.ready = true;
  v.everReady = true;
  v.gapAfter = 0;
  clearTimeout(v.timers.answer);
  v.timers.stable = setTimeout(() => { v.attempt = 0; }, STABLE_MS);
  v.people = v.arriving;
  v.arriving = null;
  drawRoster(v);
  setPhase(v, "connected");
  drawOlder(v);
  followEnd();
  speakFromNowOn(v);
  pump(v);
  watchNodes(v);
}

/** Lets the log be read aloud once what was just added to it has settled. */
function speakFromNowOn(v) {
  clearTimeout(v.timers.speak);
  v.timers.speak = setTimeout(() => {
    if (v === visit && v.ready) $("log").setAttribute("aria-live", "polite");
  }, 300);
}

/** What brings a laptop or a phone back: do not sit out a long wait. */
function wakeUp() {
  if (visit && !visit.socket && visit.phase !== "stopped") retryNow();
}

/** After the network changed or the machine slept, an open socket is probably dead. */
function replaceSocket() {
  if (visit && visit.ready) {
    // It was not the node that failed: 1001 is what a browser itself says when it goes away.
    abandonSocket(visit, 1001);
    wakeUp();
  } else {
    wakeUp();
  }
}

function watchForSleep() {
  let last = Date.now();
  setInterval(() => {
    const slept = Date.now() - last > SLEPT_MS;
    last = Date.now();
    if (slept) replaceSocket();
  }, TICK_MS);
}

// ---------------------------------------------------------------------------------------------
// What the connection is doing, shown and said.

function setPhase(v, phase) {
  if (v.phase !== phase) v.phase = phase;
  drawStatus(v);
  announceConnection(v);
}

function drawStatus(v) {
  if (v !== visit) return;
  const offline = navigator.onLine === false;
  const text = {
    connecting: "Connecting…",
    connected: "Connected",
    reconnecting: "Reconnecting…",
    waiting: offline ? "Offline" : "Reconnecting…",
    stopped: "Not connected",
  }[v.phase];
  $("chat").dataset.phase = v.phase === "waiting" && offline ? "offline" : v.phase;
  setText($("status-text"), text);
  // While an attempt of a longer row of them runs, the banner stays, so that it does not blink.
  const banner = v.phase === "waiting" || (v.phase === "reconnecting" && isLasting(v));
  if (!banner && $("banner").contains(document.activeElement)) $("text").focus();
  $("banner").hidden = !banner;
  if (banner) setText($("banner-text"), bannerText(v, offline));
}

function bannerText(v, offline) {
  if (v.phase === "reconnecting") return "Reconnecting…";
  const when = `in ${secondsUntil(v.retryAt)} s`;
  return offline ? `You are offline. Trying again ${when}.` : `Connection lost. Reconnecting ${when}.`;
}

/** Says news of the connection once it has lasted, and says nothing twice. */
function announceConnection(v) {
  clearTimeout(v.timers.announce);
  v.timers.announce = setTimeout(() => {
    if (v !== visit) return;
    const lost = v.phase === "reconnecting" || v.phase === "waiting";
    const news = lost ? "lost" : v.phase;
    if (news === v.announced || (news === "connecting")) return;
    v.announced = news;
    announce({ lost: "Connection lost. Reconnecting.", connected: "Connected.", stopped: "Not connected." }[news]);
  }, ANNOUNCE_MS);
}

function announce(text) {
  setText($("announcer"), text);
}

function showStopped(reason) {
  const missing = reason === MISSING;
  $("stopped").hidden = !reason;
  $("stage").hidden = missing;
  $("composer").hidden = Boolean(reason);
  $("invite-open").disabled = missing;
  if (!reason) return;
  setText($("stopped-title"), reason.title);
  setText($("stopped-text"), reason.text);
  $("stopped-leave").focus();
}

// ---------------------------------------------------------------------------------------------
// Frames from the server.

function receive(v, data) {
  let frame;
  try { frame = JSON.parse(data); } catch { return; }
  if (typeof frame.message === "string") return receiveMessage(v, frame);
  if (typeof frame.ack === "string") return receiveAck(v, frame);
  if (typeof frame.error === "string") return receiveError(v, frame);
  if (typeof frame.joined === "string") return changeRoster(v, frame.joined, 1);
  if (typeof frame.quit === "string") return changeRoster(v, frame.quit, -1);
  if (frame.gap) v.gapAfter = v.log.length ? v.log[v.log.length - 1].ts : 0;
  if (frame.ready) connectionReady(v);
}

function receiveMessage(v, frame) {
  if (!v.ready) expectAnswer(v);
  const added = takeIn(v, frame);
  if (v.gapAfter) {
    addGap(v, v.byTime.get(frame.timestamp), v.gapAfter);
    v.gapAfter = 0;
  }
  if (added && v.everReady && !added.own && (document.hidden || !atBottom)) v.unread += 1;
  trim(v);
  followEnd();
  drawJump();
}

function receiveAck(v, frame) {
  const entry = v.outbox.find(other => other.id === frame.ack);
  if (!entry) return;
  v.outbox.splice(v.outbox.indexOf(entry), 1);
  saveOutbox(v);
  entry.state = "sent";
  // Without an echo before it, the server had this message from an earlier connection. Should that
  // be older than what is shown, it is found by scrolling back, not as a lonely line above a hole.
  if (entry.ts === null) {
    if (v.hasOlder && v.log.length && frame.timestamp < v.log[0].ts) forget(v, entry);
    else settle(v, entry, frame.timestamp);
  }
  drawEntryState(v, entry);
  answered(v, entry);
  followEnd();
}

/** A refusal names the message it is about; there is only ever one in flight, should it not. */
function receiveError(v, frame) {
  const entry = frame.id === undefined ? v.inFlight : v.outbox.find(other => other.id === frame.id);
  if (!v.ready || !entry) {
    v.lastError = frame.error;
    if (v.ready) noteComposer(frame.error);
    return;
  }
  const wait = Number(frame.retry_after_ms);
  if (wait > 0) {
    holdBack(v, entry, wait);
  } else {
    entry.state = "failed";
    entry.reason = frame.error;
    announce(`Not sent: ${frame.error}`);
  }
  answered(v, entry);
  pump(v);
  drawOutbox(v);
}

// ---------------------------------------------------------------------------------------------
// The log: entries with a timestamp in its order, then ours that have none yet.
//
// Invariants: `log` is strictly ordered by `ts`; the document shows `log` and then the outbox's
// entries without `ts`, in this order; an id and a timestamp each name at most one entry.

function newEntry(v, { id, name, text, ts, state, made }) {
  const entry = { id, name: name || "anonymous", text, ts, state, made, reason: "", own: ownIds.has(id) };
  entry.when = ts ?? made;
  buildEntry(v, entry);
  if (id !== undefined) v.byId.set(id, entry);
  return entry;
}

/** Takes in a message from the server. Returns the entry when it was not known before. */
function takeIn(v, { id, name, message, timestamp }) {
  const known = v.byId.get(id);
  if (known && (known.own || known.name === name)) {
    if (known.ts !== timestamp) settle(v, known, timestamp);
    return null;
  }
  const there = v.byTime.get(timestamp);
  if (there && there.name === (name || "anonymous") && there.text === message) return null;
  // A node that died can take an unacked message with it, and its time can be given again.
  if (there) displace(v, there);
  const entry = newEntry(v, { id, name, text: message, ts: timestamp, state: "sent", made: timestamp });
  place(v, entry);
  return entry;
}

/** Gives an entry its timestamp, or a new one, and with it its place. */
function settle(v, entry, ts) {
  displaceFromLog(v, entry);
  const there = v.byTime.get(ts);
  if (there && there !== entry) displace(v, there);
  entry.ts = entry.when = ts;
  setTime(entry);
  place(v, entry);
  drawEntryState(v, entry);
  answered(v, entry);
}

function place(v, entry) {
  const at = indexAfter(v, entry.ts);
  v.log.splice(at, 0, entry);
  v.byTime.set(entry.ts, entry);
  const next = v.log[at + 1] ?? waitingEntries(v)[0];
  const before = next ? headOf(next) : null;
  // Moving a node makes screen readers read it again, so leave it where it already is right.
  if (!entry.node.parentNode || entry.node.nextSibling !== before) $("list").insertBefore(entry.node, before);
  regroup(v, entry, v.log[at - 1]);
  if (next) regroup(v, next, entry);
}

/** Puts an entry of ours that has no timestamp at the end. */
function placeAtEnd(v, entry) {
  const waiting = waitingEntries(v);
  const previous = waiting[waiting.indexOf(entry) - 1] ?? v.log[v.log.length - 1];
  $("list").append(entry.node);
  regroup(v, entry, previous);
}

/** Index of the first entry of the log later than `ts`. */
function indexAfter(v, ts) {
  let low = 0;
  let high = v.log.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (v.log[middle].ts <= ts) low = middle + 1; else high = middle;
  }
  return low;
}

const waitingEntries = v => v.outbox.filter(entry => entry.ts === null);

function displaceFromLog(v, entry) {
  if (entry.ts === null) return;
  const at = v.log.indexOf(entry);
  if (at < 0) return;
  v.log.splice(at, 1);
  v.byTime.delete(entry.ts);
  entry.ts = null;
  const next = v.log[at] ?? waitingEntries(v).find(other => other !== entry);
  if (next) regroup(v, next, v.log[at - 1]);
}

/** Removes what turned out not to be in the history; ours is still in the outbox then, and waits. */
function displace(v, entry) {
  displaceFromLog(v, entry);
  if (!v.outbox.includes(entry)) return forget(v, entry);
  entry.state = "waiting";
  placeAtEnd(v, entry);
  drawEntryState(v, entry);
}

function forget(v, entry) {
  if (entry.id !== undefined) v.byId.delete(entry.id);
  entry.day?.remove();
  entry.gap?.node.remove();
  entry.node.remove();
}

/** Keeps the document bounded. Only at the end of the log: above, somebody may be reading. */
function trim(v) {
  if (!atBottom || v.log.length <= KEPT_MAX) return;
  for (const entry of v.log.splice(0, v.log.length - KEPT_AFTER_TRIM)) {
    v.byTime.delete(entry.ts);
    forget(v, entry);
  }
  regroup(v, v.log[0], undefined);
  v.hasOlder = true;
  drawOlder(v);
}

// ---------------------------------------------------------------------------------------------
// Drawing entries.

const clockFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const fullFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const dayFormat = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const oldDayFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });

function buildEntry(v, entry) {
  const node = element("div", entry.own ? "msg own" : "msg");
  const meta = element("div", "meta");
  const bubble = element("p", "bubble");
  entry.time = element("time");
  entry.status = element("div", "state");
  bubble.dir = "auto";
  bubble.append(...linked(entry.text));
  meta.append(element("bdi", "name", entry.name), entry.time);
  const body = element("div", "body");
  body.append(meta, bubble, entry.status);
  const avatar = element("span", "avatar", initial(entry.name));
  avatar.setAttribute("aria-hidden", "true");
  node.append(avatar, body);
  node.style.setProperty("--hue", hueOf(entry.name));
  entry.node = node;
  entry.bubble = bubble;
  setTime(entry);
  drawEntryState(v, entry);
}

function setTime(entry) {
  const date = new Date(entry.when);
  if (Number.isNaN(date.getTime())) return;
  entry.time.dateTime = date.toISOString();
  setText(entry.time, clockFormat.format(date));
  entry.bubble.title = fullFormat.format(date);
  if (entry.ts !== null) entry.node.dataset.ts = entry.ts;
}

/** A name's colour: the same everywhere, and in steps that can be told apart. */
function hueOf(name) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i += 1) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return String(((hash >>> 16) % 24) * 15);
}

const initial = name => (Array.from(name.trim())[0] ?? "?").toUpperCase();

/** Text with its http and https URLs as links, built as nodes: nothing here is parsed as HTML. */
function linked(text) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(/\bhttps?:\/\/[^\s<>"'`]+/gi)) {
    const address = withoutTail(match[0]);
    const link = linkTo(address);
    if (!link) continue;
    parts.push(text.slice(from, match.index), link);
    from = match.index + address.length;
  }
  parts.push(text.slice(from));
  return parts.filter(part => part !== "");
}

/** An address without the punctuation of the sentence around it. */
function withoutTail(address) {
  const opened = address.split("(").length;
  while (/[.,;:!?]$/.test(address) || (address.endsWith(")") && address.split(")").length > opened)) {
    address = address.slice(0, -1);
  }
  return address;
}

function linkTo(address) {
  try { new URL(address); } catch { return null; }
  const link = element("a", "", address);
  link.href = address;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return link;
}

/** Adds or removes what depends on the entry before: the day's line, and whether a group starts. */
function regroup(v, entry, previous) {
  const day = dayOf(entry.when);
  const newDay = !previous || dayOf(previous.when) !== day;
  if (newDay) drawDay(entry);
  else if (entry.day) {
    entry.day.remove();
    entry.day = null;
  }
  if (entry.gap) $("list").insertBefore(entry.gap.node, entry.day ?? entry.node);
  const start = newDay || Boolean(entry.gap) || previous.name !== entry.name || previous.own !== entry.own
    || entry.when - previous.when > GROUP_MS;
  entry.node.classList.toggle("start", start);
}

const dayOf = time => new Date(time).toDateString();

function drawDay(entry) {
  if (!entry.day) {
    entry.day = element("div", "divider");
    entry.day.append(element("span", "", dayName(entry.when)));
  }
  $("list").insertBefore(entry.day, entry.node);
}

function dayName(time) {
  const today = new Date();
  const yesterday = new Date(today);
  yesterday.setDate(today.getDate() - 1);
  const day = dayOf(time);
  if (day === today.toDateString()) return "Today";
  if (day === yesterday.toDateString()) return "Yesterday";
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "";
  return (date.getFullYear() === today.getFullYear() ? dayFormat : oldDayFormat).format(date);
}

/** The first node that belongs to an entry. */
const headOf = entry => entry.gap?.node ?? entry.day ?? entry.node;

// ---------------------------------------------------------------------------------------------
// The outbox.

function sendText(v, text) {
  const id = newId();
  rememberOwn(id);
  const entry = newEntry(v, { id, name: me, text, ts: null, state: "waiting", made: Date.now() });
  v.outbox.push(entry);
  saveOutbox(v);
  placeAtEnd(v, entry);
  pump(v);
  drawOutbox(v);
  followEnd(true);
}

/** Sends the next message. One at a time, so that a refusal of one cannot reorder the others. */
function pump(v) {
  clearTimeout(v.timers.pump);
  if (!v.ready || v.inFlight) return;
  const entry = v.outbox.find(other => other.state === "waiting");
  if (!entry) return;
  const wait = v.holdUntil - Date.now();
  if (wait > 0) {
    v.timers.pump = setTimeout(() => pump(v), wait);
    return;
  }
  entry.state = "sending";
  v.inFlight = entry;
  v.socket.send(JSON.stringify({ message: entry.text, id: entry.id }));
  expectAnswer(v);
  drawOutbox(v);
}

/** The server said something about a message: if it was the one in flight, the next may go. */
function answered(v, entry) {
  if (v.inFlight === entry) v.inFlight = null;
  // An echo is not yet an ack: go on waiting while anything is unacked.
  if (v.outbox.some(other => other.state === "sending")) expectAnswer(v);
  else clearTimeout(v.timers.answer);
  pump(v);
}

/** Too fast for the limiter: wait as it asks, then send again by ourselves. */
function holdBack(v, entry, wait) {
  entry.state = "waiting";
  v.holdUntil = Date.now() + wait;
  if (!v.timers.hold) {
    v.timers.hold = setInterval(() => {
      if (v.holdUntil <= Date.now()) {
        clearInterval(v.timers.hold);
        v.timers.hold = null;
      }
      drawOutbox(v);
    }, 500);
    announce(`Too fast. Your message is sent by itself in ${secondsUntil(v.holdUntil)} seconds.`);
  }
}

/** After a lost connection everything unacked is sent again, whatever became of it. */
function rewindOutbox(v) {
  for (const entry of v.outbox) if (entry.state === "sending") entry.state = "waiting";
}

function drawOutbox(v) {
  if (!v.ready) rewindOutbox(v);
  for (const entry of v.outbox) drawEntryState(v, entry);
  followEnd();
}

function drawEntryState(v, entry) {
  const [shown, text] = describeState(v, entry);
  if (entry.node.dataset.state === shown && entry.statusText === text) return;
  entry.node.dataset.state = shown;
  entry.statusText = text;
  entry.status.replaceChildren();
  if (!text) return;
  const words = element("span", shown === "sending" ? "sr-only" : "", text);
  entry.status.append(icon(shown === "failed" ? "alert" : "clock"), words);
  if (shown === "failed") entry.status.append(...failedActions(v, entry));
}

/** [what the style sheet is told, what people are told]. */
function describeState(v, entry) {
  if (entry.state === "sent") return ["sent", ""];
  if (entry.state === "failed") return ["failed", `Not sent: ${entry.reason}`];
  if (!v.ready) return ["waiting", "Waiting for the connection"];
  if (entry.state === "waiting" && v.holdUntil > Date.now()) {
    const first = v.outbox.find(other => other.state === "waiting") === entry;
    return ["limited", first ? `Sending too fast. Goes out in ${secondsUntil(v.holdUntil)} s` : "Waiting its turn"];
  }
  return ["sending", "Sending"];
}

function failedActions(v, entry) {
  const again = element("button", "plain", "Try again");
  const edit = element("button", "plain", "Edit");
  const drop = element("button", "plain", "Delete");
  for (const button of [again, edit, drop]) button.type = "button";
  again.addEventListener("click", () => {
    entry.state = "waiting";
    pump(v);
    drawOutbox(v);
    $("text").focus();
  });
  edit.addEventListener("click", () => {
    const other = $("text").value;
    withdraw(v, entry);
    setComposer(clip(other ? `${other} ${entry.text}` : entry.text, TEXT_MAX));
  });
  drop.addEventListener("click", () => {
    withdraw(v, entry);
    $("text").focus();
  });
  return [again, edit, drop];
}

/** Takes a refused message out of the conversation. */
function withdraw(v, entry) {
  const waiting = waitingEntries(v);
  const at = waiting.indexOf(entry);
  const next = at < 0 ? undefined : waiting[at + 1];
  displaceFromLog(v, entry);
  v.outbox.splice(v.outbox.indexOf(entry), 1);
  saveOutbox(v);
  forget(v, entry);
  if (next) regroup(v, next, waiting[at - 1] ?? v.log[v.log.length - 1]);
}

/** Survives a reload of this tab; the ids make sending again harmless. */
function saveOutbox(v) {
  const kept = v.outbox.map(({ id, text, made }) => ({ id, text, made }));
  remember("sessionStorage", `outbox.${v.room}`, kept.length ? kept : null);
}

function restoreOutbox(v) {
  const kept = recall("sessionStorage", `outbox.${v.room}`);
  if (!Array.isArray(kept)) return;
  for (const { id, text, made } of kept.slice(0, OUTBOX_MAX)) {
    ownIds.add(id);
    const entry = newEntry(v, { id, name: me, text, ts: null, state: "waiting", made });
    v.outbox.push(entry);
    placeAtEnd(v, entry);
  }
}

// ---------------------------------------------------------------------------------------------
// History.

/** Loads what comes before the oldest message shown, without moving what is being read. */
async function loadOlder(v) {
  if (v !== visit || v.older === "loading" || !v.hasOlder || !v.log.length) return;
  const before = v.log[0].ts;
  v.older = "loading";
  keepingPlace(() => drawOlder(v));
  let page = null;
  try { page = await fetchHistory(v.room, { before, limit: HISTORY_PAGE }); } catch { /* shown below */ }
  if (v !== visit) return;
  v.older = page ? "idle" : "failed";
  // A trim meanwhile has moved the edge: this page would leave a hole.
  const fits = page && v.log.length && v.log[0].ts === before;
  keepingPlace(() => {
    if (fits) {
      v.hasOlder = page.more && page.messages.length > 0;
      silently(v, () => page.messages.forEach(message => takeIn(v, message)));
    }
    drawOlder(v);
  });
  if (page) loadOlderIfNear();
}

function loadOlderIfNear() {
  const log = $("log");
  // A log that is not laid out (hidden by the notice) has no height and would load for ever.
  if (visit && visit.ready && visit.older === "idle" && log.clientHeight && log.scrollTop < log.clientHeight) loadOlder(visit);
}

function drawOlder(v) {
  const begun = v.everReady && !v.hasOlder;
  $("intro").hidden = !begun;
  $("older").hidden = begun || !v.everReady || v.older === "idle";
  $("older-retry").hidden = v.older !== "failed";
  setText($("older-text"), v.older === "failed" ? "Older messages could not be loaded." : "Loading older messages…");
}

/** A line where messages were skipped because there were too many of them to send at once. */
function addGap(v, entry, after) {
  const node = element("div", "divider gap");
  const button = element("button", "secondary small", "Some messages were skipped. Show them");
  button.type = "button";
  button.addEventListener("click", () => fillGap(v, entry.gap?.current ?? entry));
  node.append(button);
  entry.gap = { after, node, button, current: entry };
  regroup(v, entry, v.log[v.log.indexOf(entry) - 1]);
}

/** Fills a gap from its lower edge upwards, a page at a time; the line moves up with it. */
async function fillGap(v, holder) {
  const gap = holder.gap;
  gap.button.disabled = true;
  let page = null;
  try { page = await fetchHistory(v.room, { before: holder.ts, limit: HISTORY_PAGE }); } catch { /* shown below */ }
  if (v !== visit || holder.gap !== gap) return;
  gap.button.disabled = false;
  if (!page) return setText(gap.button, "Could not load them. Try again");
  const missing = page.messages.filter(message => message.timestamp > gap.after);
  const filled = missing.length < page.messages.length || !page.more;
  holder.gap = null;
  gap.node.remove();
  keepingPlace(() => silently(v, () => missing.forEach(message => takeIn(v, message))));
  const top = missing.length ? v.byTime.get(missing[0].timestamp) : holder;
  if (!filled && top) moveGap(v, gap, top);
  regroup(v, holder, v.log[v.log.indexOf(holder) - 1]);
}

function moveGap(v, gap, entry) {
  entry.gap = gap;
  gap.current = entry;
  gap.button.replaceWith(gap.button = gap.button.cloneNode(true));
  gap.button.addEventListener("click", () => fillGap(v, entry));
  regroup(v, entry, v.log[v.log.indexOf(entry) - 1]);
}

/** Changes the log without having it read aloud. */
function silently(v, change) {
  $("log").setAttribute("aria-live", "off");
  change();
  speakFromNowOn(v);
}

// ---------------------------------------------------------------------------------------------
// Scrolling.

/** Runs a change above what is in view and leaves what is in view where it was. */
function keepingPlace(change) {
  const log = $("log");
  const fromEnd = log.scrollHeight - log.scrollTop;
  change();
  log.scrollTop = log.scrollHeight - fromEnd;
}

let following = false;

/** Scrolls to the end, if it was in view or must be, once a frame however much arrives. */
function followEnd(always = false) {
  if (always) atBottom = true;
  if (!atBottom || following) return;
  following = true;
  requestAnimationFrame(() => {
    following = false;
    if (atBottom) $("log").scrollTop = $("log").scrollHeight;
    drawJump();
    loadOlderIfNear();
  });
}

function scrolled() {
  // Between an arrival and the frame that follows it the end is out of view for a moment only.
  if (following) return;
  const log = $("log");
  atBottom = log.scrollTop + log.clientHeight >= log.scrollHeight - 32;
  drawJump();
  loadOlderIfNear();
}

function drawJump() {
  if (!visit) return;
  if (atBottom && !document.hidden) visit.unread = 0;
  $("jump").hidden = atBottom;
  setText($("jump-text"), visit.unread ? plural(visit.unread, "new message", "new messages") : "Latest messages");
  $("jump").classList.toggle("news", visit.unread > 0);
  document.title = `${visit.unread ? `(${visit.unread}) ` : ""}${roomLabel(visit.room)} · Parley`;
}

function jumpToEnd() {
  followEnd(true);
  $("text").focus();
}

function scrollByKey(event) {
  const log = $("log");
  const page = Math.max(50, log.clientHeight - 50);
  const empty = $("text").value === "";
  const distance = {
    PageUp: -page, PageDown: page,
    ArrowUp: empty ? -50 : 0, ArrowDown: empty ? 50 : 0,
  }[event.key];
  if (!distance || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  log.scrollBy(0, distance);
}

// ---------------------------------------------------------------------------------------------
// The roster.

function changeRoster(v, name, by) {
  const people = v.arriving ?? v.people;
  const count = (people.get(name) ?? 0) + by;
  if (count > 0) people.set(name, count); else people.delete(name);
  // Until `ready` the last complete roster stays up, so that a reconnection does not flicker.
  if (!v.arriving) drawRoster(v);
}

const countPeople = v => [...v.people.values()].reduce((sum, count) => sum + count, 0);
const byName = new Intl.Collator(undefined, { sensitivity: "base" }).compare;

/** Makes the list match the roster, touching only what changed. */
function drawRoster(v) {
  if (v !== visit) return;
  const names = [...v.people.keys()].sort((a, b) => (b === me) - (a === me) || byName(a, b) || (a < b ? -1 : 1));
  const rows = new Map(Array.from($("roster").children, row => [row.dataset.name, row]));
  let place = $("roster").firstChild;
  for (const name of names) {
    const row = rows.get(name) ?? personRow(name);
    rows.delete(name);
    if (row === place) place = place.nextSibling;
    else $("roster").insertBefore(row, place);
    const count = v.people.get(name);
    setText(row.lastChild, count > 1 ? `×${count}` : "");
  }
  rows.forEach(row => row.remove());
  const total = String(countPeople(v));
  setText($("people-count"), total);
  setText($("people-badge"), total);
}

function personRow(name) {
  const row = element("li");
  const avatar = element("span", "avatar", initial(name));
  avatar.setAttribute("aria-hidden", "true");
  row.dataset.name = name;
  row.style.setProperty("--hue", hueOf(name));
  row.append(avatar, element("bdi", "name", name));
  if (name === me) row.append(element("span", "you", "you"));
  row.append(element("span", "times"));
  return row;
}

const wide = matchMedia("(min-width: 860px)");

/** On narrow screens the roster is a drawer over the page, and then the page behind it rests. */
function openPeople() {
  $("chat").dataset.people = "open";
  $("people-open").setAttribute("aria-expanded", "true");
  $("people").setAttribute("role", "dialog");
  $("people").setAttribute("aria-modal", "true");
  $("scrim").hidden = false;
  $("room").inert = true;
  document.querySelector("#chat > .bar").inert = true;
  $("people-close").focus();
}

function closePeople() {
  if ($("chat").dataset.people !== "open") return;
  delete $("chat").dataset.people;
  $("people-open").setAttribute("aria-expanded", "false");
  $("people").removeAttribute("role");
  $("people").removeAttribute("aria-modal");
  $("scrim").hidden = true;
  $("room").inert = false;
  document.querySelector("#chat > .bar").inert = false;
  if (!wide.matches) $("people-open").focus();
}

// ---------------------------------------------------------------------------------------------
// Inviting.

function inviteText(room) {
  return isPrivate(room)
    ? "It is listed nowhere. Whoever has its link can enter and read everything said here, so share it with care."
    : "Anyone who types this name or opens its link can enter and read what was said. Messages are kept.";
}

function openInvite() {
  setText($("invite-text"), inviteText(visit.room));
  $("invite-link").value = roomLink(visit.room);
  setText($("invite-note"), "");
  $("invite").showModal();
  $("invite-copy").focus();
}

async function copyLink() {
  if (!$("invite").open) openInvite();
  const copied = await copyText($("invite-link").value);
  setText($("invite-note"), copied ? "Link copied." : "Copying is not allowed here. The link is selected: press Ctrl+C or ⌘C.");
  if (!copied) $("invite-link").focus();
  if (!copied) $("invite-link").select();
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard API on plain http away from localhost; the old command works on a selection.
    $("invite-link").select();
    return document.execCommand("copy");
  }
}

// ---------------------------------------------------------------------------------------------
// The composer.

function submitMessage(event) {
  event.preventDefault();
  const v = visit;
  if (!v) return;
  const text = wellFormed(clip($("text").value, TEXT_MAX));
  if (text.trim() === "") return;
  if (v.outbox.length >= OUTBOX_MAX) return noteComposer("Too many messages are waiting. This one stays here until some are sent.");
  setComposer("");
  sendText(v, text);
}

function setComposer(text) {
  $("text").value = text;
  composerChanged();
  $("text").focus();
}

function composerChanged() {
  const field = $("text");
  if (field.value.length > TEXT_MAX) field.value = clip(field.value, TEXT_MAX);
  if (visit) remember("sessionStorage", `draft.${visit.room}`, field.value || null);
  noteComposer("");
  fitComposer();
}

function fitComposer() {
  const field = $("text");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
  const left = TEXT_MAX - field.value.length;
  $("counter").hidden = left > COUNTER_FROM;
  $("counter").classList.toggle("none-left", left === 0);
  setText($("counter"), String(left));
  $("send").classList.toggle("idle", field.value.trim() === "");
  if (left === 0) announce(`The limit of ${TEXT_MAX} characters is reached.`);
  else if (left === 20) announce("20 characters left.");
  followEnd();
}

function noteComposer(text) {
  setText($("composer-note"), text);
}

function composerKey(event) {
  // While an input method composes a character, Enter belongs to it.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) return submitMessage(event);
  scrollByKey(event);
}

// ---------------------------------------------------------------------------------------------
// The window.

/** iOS lays its keyboard over the page instead of shrinking it. */
function fitViewport() {
  const view = window.visualViewport;
  const covered = view && view.scale < 1.01 && window.innerHeight - view.height > 60;
  if (covered) document.documentElement.style.setProperty("--page-height", `${view.height}px`);
  else document.documentElement.style.removeProperty("--page-height");
  if (covered) window.scrollTo(0, 0);
  followEnd();
}

function listen() {
  const on = (id, event, action) => $(id).addEventListener(event, action);
  on("name-form", "submit", submitName);
  on("name-input", "input", () => { $("name-input").value = clip($("name-input").value, NAME_MAX); setText($("name-problem"), ""); });
  on("room-form", "submit", submitRoom);
  on("room-input", "input", previewRoom);
  on("private-go", "click", createPrivateRoom);
  on("change-name", "click", () => { me = null; showNameForm(null); });
  on("leave", "click", leaveToRoomForm);
  on("invite-open", "click", openInvite);
  on("intro-invite", "click", copyLink);
  on("invite-copy", "click", copyLink);
  on("people-open", "click", openPeople);
  on("people-close", "click", closePeople);
  on("scrim", "click", closePeople);
  on("retry", "click", retryNow);
  on("stopped-leave", "click", leaveToRoomForm);
  on("stopped-retry", "click", () => { retryNow(); $("text").focus(); });
  on("older-retry", "click", () => loadOlder(visit));
  on("log", "scroll", scrolled);
  on("jump", "click", jumpToEnd);
  on("composer", "submit", submitMessage);
  on("text", "input", composerChanged);
  on("text", "keydown", composerKey);
  wide.addEventListener("change", closePeople);
  window.addEventListener("hashchange", route);
  window.addEventListener("popstate", route);
  window.addEventListener("online", replaceSocket);
  window.addEventListener("offline", () => visit && drawStatus(visit));
  window.visualViewport?.addEventListener("resize", fitViewport);
  // Whatever changes its height, the window or anything in it, a log that is at its end stays there.
  const sizes = new ResizeObserver(() => followEnd());
  for (const id of ["log", "older", "intro", "list"]) sizes.observe($(id));
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    drawJump();
    wakeUp();
  });
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") closePeople();
  });
}

/** A reload keeps its name and goes straight back in; a new tab asks, with the last name ready. */
function start() {
  const known = recall("localStorage", "own");
  if (Array.isArray(known)) known.forEach(id => ownIds.add(id));
  const name = recall("sessionStorage", "name");
  if (typeof name === "string" && name && name.length <= NAME_MAX) me = name;
  recallNodes();
  listen();
  watchForSleep();
  learnNodes().catch(() => { /* learnt with the first connection */ });
  route();
}

start();
})();
