/** One guest in the test machine, told by what it writes on its console; guest/init.c says what that is. */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** A place in the console's log; what was written later is after it. @typedef {Map<string, number>} Mark */

export class Guest {
  /**
   * @param {import('./host.js').Host} t where it is
   * @param {string} name
   * @param {import('./context.js').GuestType} type
   * @param {string} config file for xl
   * @param {number} [vcpus]
   */
  constructor(t, name, type, config, vcpus = 1) {
    this.t = t;
    this.name = name;
    this.type = type;
    this.config = config;
    this.vcpus = vcpus;
  }

  /** @returns {Promise<number>} throws if there is no such domain */
  async domid() {
    const said = (await this.t.xl(['domid', this.name])).stdout.trim();
    // What is empty would be dom0's number.
    if (!/^[1-9]\d*$/.test(said)) throw new Error(`xl domid ${this.name}: ${JSON.stringify(said)}`);
    return Number(said);
  }

  /** @returns {Promise<boolean>} */
  async exists() {
    return (await this.t.domains()).some(({ name }) => name === this.name);
  }

  async destroy() {
    await this.t.xl(['destroy', this.name]);
  }

  /** @returns {Mark} where the console's log ends now */
  mark() {
    return new Map(this.logs().map((file) => [file, fs.statSync(file).size]));
  }

  /** While it is received, a domain may have another name, and its log is called after that for ever. */
  logs() {
    const mine = (/** @type {string} */ name) =>
      name === `guest-${this.name}.log` || name.startsWith(`guest-${this.name}--`);
    const { consoles } = this.t;
    const names = fs.existsSync(consoles) ? fs.readdirSync(consoles) : [];
    return names
      .filter(mine)
      .sort()
      .map((name) => path.join(consoles, name));
  }

  /**
   * @param {Mark} [since]
   * @returns {string[]} whole lines
   */
  lines(since = new Map()) {
    return this.logs().flatMap((file) => {
      const text = fs
        .readFileSync(file)
        .subarray(since.get(file) ?? 0)
        .toString('latin1');
      return text
        .split('\n')
        .slice(0, -1)
        .map((line) => line.replace(/\r$/, ''));
    });
  }

  /**
   * Waits for a line on the console.
   *
   * @param {RegExp} pattern
   * @param {{ since?: Mark, seconds?: number, count?: number }} [options]
   * @returns {Promise<RegExpMatchArray[]>} the first `count` matches
   */
  async waitFor(pattern, { since = new Map(), seconds = 60, count = 1 } = {}) {
    const end = performance.now() + seconds * 1000;
    for (;;) {
      const lines = this.lines(since);
      const bad = lines.find((line) => line.includes('SUM BAD') || /Kernel panic|Oops|BUG:/.test(line));
      if (bad !== undefined) throw new Error(`${this.name}: ${bad}`);
      const found = lines.flatMap((line) => line.match(pattern) ?? []).length;
      if (found > 0) {
        const matches = lines.map((line) => line.match(pattern)).filter((match) => match !== null);
        if (matches.length >= count) return matches.slice(0, count);
      }
      if (performance.now() > end) {
        const last = this.lines().slice(-5).join('\n  ');
        throw new Error(
          `${this.name}: ${pattern.source} did not come ${count} times in ${seconds} s; last lines:\n  ${last}`,
        );
      }
      await sleep(200, undefined, { signal: this.t.signal });
    }
  }

  /**
   * Waits until the guest has shown that it lives and that its memory holds: three ticks in a row, on each of its vcpus,
   * which are all online, and a pass over all of its memory that began after `since`. The OS-less guest tells of ticks only.
   *
   * @param {Mark} [since] default: now
   * @param {number} [seconds]
   */
  async goesOn(since = this.mark(), seconds = 90) {
    if (this.type === 'tiny') return this.tinyGoesOn(seconds);
    await this.#threeInARow(/^TICK (\d+)/, since, seconds);
    for (let vcpu = 1; vcpu < this.vcpus; vcpu++) {
      const all = `0-${this.vcpus - 1}`;
      await this.#threeInARow(new RegExp(`^VCPU ${vcpu} TICK (\\d+) online=${all}$`), since, seconds);
    }
    // The first pass that ends after the mark may have begun before it.
    await this.waitFor(/^SUM ok (\d+)/, { since, seconds, count: 2 });
  }

  /** @param {RegExp} pattern with the number @param {Mark} since @param {number} seconds */
  async #threeInARow(pattern, since, seconds) {
    const ticks = await this.waitFor(pattern, { since, seconds, count: 3 });
    // By number: those of a migrated guest stand in several logs.
    const numbers = ticks.map(([, n]) => Number(n)).sort((a, b) => a - b);
    const [first = 0, second = 0, third = 0] = numbers;
    if (second !== first + 1 || third !== first + 2)
      throw new Error(`${this.name}: ${pattern.source}: ${numbers.join(', ')} are not in a row`);
  }

  /** @param {number} seconds */
  async tinyGoesOn(seconds) {
    const id = await this.domid();
    const ticks = async () => {
      const log = (await this.t.xl(['dmesg'])).stdout;
      return [...log.matchAll(new RegExp(`\\(d${id}\\) TINY TICK ([0-9A-F]+)`, 'g'))].length;
    };
    const before = await ticks();
    for (const end = performance.now() + seconds * 1000; (await ticks()) < before + 2;) {
      if (performance.now() > end) throw new Error(`${this.name}: no tick in ${seconds} s`);
      await sleep(1000, undefined, { signal: this.t.signal });
    }
  }

  /** @returns {number | undefined} the highest tick on the console, of whichever name it had */
  lastTick() {
    const ticks = this.lines().flatMap((line) => line.match(/^TICK (\d+)$/)?.[1] ?? []);
    return ticks.length === 0 ? undefined : Math.max(...ticks.map(Number));
  }
}
