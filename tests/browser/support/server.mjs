// Starts and kills the real program.

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const REPO = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
const BINARY = resolve(REPO, process.env.PARLEY_BIN ?? "target/debug/parley");
const READY_MAX_MS = 20_000;

const running = new Set();
// However the tests end, nothing they started outlives them.
process.on("exit", () => running.forEach(child => child.kill("SIGKILL")));

/** One node on a free port with a data folder of its own. */
export class Server {
  /** `env` is added to the program's; the limiter is off unless it says otherwise. */
  static async start(env = {}) {
    if (!existsSync(BINARY)) throw new Error(`${BINARY} does not exist: build it, or name it in PARLEY_BIN`);
    const server = new Server();
    server.env = { PARLEY_LIMITS_INTERVAL_MS: "0", ...env };
    server.data = mkdtempSync(join(tmpdir(), "parley-browser-"));
    await server.run("127.0.0.1:0");
    return server;
  }

  /** Starts the program again on the same data, and on the same port unless another is given. */
  async restart(listen = new URL(this.url).host) {
    await this.run(listen);
  }

  async run(listen) {
    const child = spawn(BINARY, ["serve", "--http", listen, "--data", this.data], {
      env: { ...process.env, ...this.env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    running.add(child);
    this.child = child;
    this.log = [];
    createInterface({ input: child.stderr }).on("line", line => this.log.push(line));
    this.gone = new Promise(done => child.once("exit", () => {
      running.delete(child);
      done();
    }));
    this.url = await this.readyUrl(child);
  }

  readyUrl(child) {
    return new Promise((done, fail) => {
      const failed = why => fail(new Error(`the server ${why}\n${this.log.slice(-40).join("\n")}`));
      const timer = setTimeout(() => failed(`was not ready in ${READY_MAX_MS} ms`), READY_MAX_MS);
      child.once("error", error => failed(String(error)));
      child.once("exit", code => failed(`exited with ${code} before it was ready`));
      createInterface({ input: child.stdout }).on("line", line => {
        const ready = line.match(/^parley \S+ ready http=(\S+)/);
        if (!ready) return;
        clearTimeout(timer);
        child.removeAllListeners("exit");
        child.once("exit", () => running.delete(child));
        this.gone = new Promise(gone => child.exitCode === null ? child.once("exit", gone) : gone());
        done(ready[1]);
      });
    });
  }

  /** As if the power went: nothing is flushed or said. */
  async kill() {
    this.child.kill("SIGKILL");
    await this.gone;
  }

  async end() {
    if (this.child.exitCode === null && this.child.signalCode === null) await this.kill();
    rmSync(this.data, { recursive: true, force: true });
  }
}
