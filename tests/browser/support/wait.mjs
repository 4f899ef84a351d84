// Waiting for something to become true, with a deadline and a reason when it does not.

/**
 * Calls `probe` until it returns something truthy, and returns that.
 * Throws after `deadline_ms`, naming `what` and the last value or error seen.
 */
export async function until(what, probe, deadline_ms = 15_000) {
  const end = Date.now() + deadline_ms;
  let last;
  for (;;) {
    try {
      last = await probe();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end) throw new Error(`waited ${deadline_ms} ms in vain: ${what} (last: ${last})`);
    await new Promise(resolve => setTimeout(resolve, 25));
  }
}
