// People talk to each other.

import assert from "node:assert/strict";
import { connected, giveName, messages, roster, rosterIs, say, scenario, shows, texts, useBrowser } from "./support/people.mjs";
import { until } from "./support/wait.mjs";

useBrowser();

scenario("two people chat and see each other in the roster", {}, async ({ enter }) => {
  const alice = await enter("alice", "lobby");
  const bob = await enter("bob", "lobby");
  await rosterIs(alice, ["alice", "bob"]);
  await rosterIs(bob, ["bob", "alice"]);
  assert.equal(await alice.locator("#people-count").textContent(), "2");
  assert.equal(await alice.locator("#status-text").textContent(), "Connected");

  await say(alice, "hi bob");
  await shows(bob, ["hi bob"]);
  await say(bob, "hi alice");
  await say(bob, "how are you?");
  await shows(alice, ["hi bob", "hi alice", "how are you?"]);
  await shows(bob, ["hi bob", "hi alice", "how are you?"]);

  assert.deepEqual((await messages(alice)).map(message => message.name), ["alice", "bob", "bob"]);
  assert.equal(await alice.locator(".msg.own").count(), 1);
  assert.equal(await bob.locator(".msg.own").count(), 2);
  assert.deepEqual(await messages(alice), await messages(bob), "both see the same names, order and times");

  await bob.close();
  await rosterIs(alice, ["alice"]);
});

scenario("the same name twice is one row that says so", {}, async ({ enter }) => {
  const alice = await enter("alice", "lobby");
  const first = await enter("bob", "lobby");
  await enter("bob", "lobby");
  await rosterIs(alice, ["alice", "bob"]);
  await until("the row says two", async () => (await alice.locator("#roster li").nth(1).textContent()).includes("×2"));
  assert.equal(await alice.locator("#people-count").textContent(), "3");

  // Somebody else's words are not shown as one's own because the name is the same.
  await say(first, "I am the first bob");
  await shows(alice, ["I am the first bob"]);
  await first.close();
  await until("the row says one again", async () => !(await alice.locator("#roster li").nth(1).textContent()).includes("×"));
});

scenario("one reloads, needs no name again and sees the history", {}, async ({ enter }) => {
  const alice = await enter("alice", "lobby");
  const bob = await enter("bob", "lobby");
  await say(alice, "one");
  await shows(bob, ["one"]);
  await say(bob, "two");
  await shows(alice, ["one", "two"]);

  await alice.reload();
  await connected(alice);
  await shows(alice, ["one", "two"]);
  assert.deepEqual(await messages(alice), await messages(bob));
  assert.equal(await alice.locator(".msg.own").textContent().then(text => text.includes("one")), true, "own words stay own");
  await rosterIs(alice, ["alice", "bob"]);

  await say(bob, "three");
  await shows(alice, ["one", "two", "three"]);
});

scenario("a new tab asks for the name, with the last one ready", {}, async ({ enter, open }) => {
  const alice = await enter("alice", "lobby");
  const other = await open("/#lobby", { context: alice.context() });
  assert.equal(await other.getByLabel("Your name").inputValue(), "alice");
  await other.keyboard.press("Enter");
  await connected(other);
  await until("both are there", async () => (await alice.locator("#people-count").textContent()) === "2");
});

scenario("a page that may not store anything works", {}, async ({ enter }) => {
  const alice = await enter("alice", "lobby", {
    prepare: page => page.addInitScript(() => {
      for (const kind of ["localStorage", "sessionStorage"]) {
        Object.defineProperty(window, kind, { get() { throw new DOMException("denied", "SecurityError"); } });
      }
    }),
  });
  await say(alice, "still here");
  await shows(alice, ["still here"]);
});

scenario("a page without randomUUID gives its messages ids all the same", {}, async ({ enter }) => {
  const alice = await enter("alice", "lobby", {
    prepare: page => page.addInitScript(() => { Crypto.prototype.randomUUID = undefined; }),
  });
  await say(alice, "one");
  await say(alice, "two");
  await shows(alice, ["one", "two"]);
});

scenario("text is shown as text and does not run", {}, async ({ enter }) => {
  const evil = [
    "<img src=x onerror=\"document.title='pwned'\">",
    "<script>document.title='pwned'</script>",
    "<svg/onload=\"document.title='pwned'\"> &amp; <b>bold</b>",
    "javascript:document.title='pwned'",
  ];
  const alice = await enter("<b>alice</b>", "lobby");
  const bob = await enter("bob", "lobby");
  for (const text of evil) await say(alice, text);
  await shows(bob, evil);
  await shows(alice, evil);
  for (const page of [alice, bob]) {
    assert.equal(await page.locator("#list img, #list script, #list svg[onload], #list b, #list a").count(), 0);
    assert.doesNotMatch(await page.title(), /pwned/);
  }
  assert.deepEqual(await roster(bob), ["bob", "<b>alice</b>"]);
});

scenario("addresses become safe links and leave the text as it was", {}, async ({ enter }) => {
  const alice = await enter("alice", "lobby");
  const text = "see https://example.org/a_(b)?q=1, (http://example.com/x) and ftp://no.example or https://";
  await say(alice, text);
  await shows(alice, [text]);
  const links = await alice.locator("#list a").evaluateAll(nodes => nodes.map(node => [node.getAttribute("href"), node.rel, node.target]));
  assert.deepEqual(links, [
    ["https://example.org/a_(b)?q=1", "noopener noreferrer", "_blank"],
    ["http://example.com/x", "noopener noreferrer", "_blank"],
  ]);
});

scenario("a private room is shared by its link", {}, async ({ enter, open }) => {
  const alice = await enter("alice");
  await alice.getByRole("button", { name: "Create a private room" }).click();
  await connected(alice);
  const hash = new URL(alice.url()).hash;
  assert.match(hash, /^#[0-9a-f]{64}$/);
  assert.match(await alice.locator("#intro").textContent(), /Whoever has its link can enter/);

  await alice.getByRole("button", { name: "Invite" }).click();
  const link = await alice.getByLabel("Link to this room").inputValue();
  assert.equal(link, alice.url());
  await alice.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await alice.getByRole("button", { name: "Copy link" }).click();
  await until("it says so", async () => (await alice.locator("#invite-note").textContent()) === "Link copied.");
  assert.equal(await alice.evaluate(() => navigator.clipboard.readText()), link);
  await alice.keyboard.press("Escape");

  const bob = await open(`/${hash}`);
  assert.match(await bob.locator("#name-go").textContent(), /private room/);
  await giveName(bob, "bob");
  await connected(bob);
  await rosterIs(alice, ["alice", "bob"]);
  await say(alice, "between us");
  await shows(bob, ["between us"]);

  // Pasting the link where a room's name is asked for works too.
  const carol = await enter("carol");
  await carol.getByLabel("Room name").fill(link);
  await carol.keyboard.press("Enter");
  await connected(carol);
  assert.deepEqual(await texts(carol), ["between us"]);
});

scenario("names and texts end at their limits", {}, async ({ open }) => {
  const page = await open("/#lobby");
  await page.getByLabel("Your name").pressSequentially("n".repeat(40));
  assert.equal((await page.getByLabel("Your name").inputValue()).length, 32);
  await page.keyboard.press("Enter");
  await connected(page);
  await rosterIs(page, ["n".repeat(32)]);

  const field = page.getByLabel("Message", { exact: true });
  await field.fill("a".repeat(150));
  assert.equal(await page.locator("#counter").isVisible(), false);
  await field.fill("a".repeat(210));
  assert.equal(await page.locator("#counter").textContent(), "46");
  await field.press("End");
  await page.keyboard.insertText("b".repeat(100));
  assert.equal((await field.inputValue()).length, 256);
  assert.equal(await page.locator("#counter").textContent(), "0");
  await page.keyboard.press("Enter");
  await shows(page, ["a".repeat(210) + "b".repeat(46)]);

  // UTF-16 units count, and no character is cut in half: 128 of these are exactly 256 units.
  await field.evaluate((node, text) => {
    node.value = text;
    node.dispatchEvent(new Event("input"));
  }, "x" + "😀".repeat(128));
  assert.equal(await field.inputValue(), "x" + "😀".repeat(127));
  await page.keyboard.press("Enter");
  await shows(page, ["a".repeat(210) + "b".repeat(46), "x" + "😀".repeat(127)]);

  // Nothing but blanks is not a message.
  await say(page, "   ");
  await say(page, "end");
  await until("the last arrived", async () => (await texts(page)).at(-1) === "end");
  assert.equal((await texts(page)).length, 3);
});
