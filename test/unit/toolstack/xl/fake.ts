/** A folder that is a host of the fake xl. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { vi } from 'vitest';

export const FAKE_XL = fileURLToPath(new URL('fake-xl.mjs', import.meta.url));

export class FakeXl {
  readonly folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fake-xl-'));

  /** @param mode How its `restore` or `destroy` goes wrong; see fake-xl.mjs */
  constructor(mode = '') {
    vi.stubEnv('FAKE_XL', this.folder);
    this.mode = mode;
  }

  set mode(mode: string) {
    fs.writeFileSync(path.join(this.folder, 'mode'), mode);
  }

  add(domid: number, name: string): void {
    fs.writeFileSync(path.join(this.folder, String(domid)), name);
  }

  /** Names by domid. */
  domains(): Record<string, string> {
    const ids = fs.readdirSync(this.folder).filter((name) => /^\d+$/.test(name));
    return Object.fromEntries(ids.map((id) => [id, this.read(id)]));
  }

  /** Command lines so far. */
  get log(): string[] {
    return this.read('log').split('\n').slice(0, -1);
  }

  read(file: string): string {
    return this.bytes(file).toString();
  }

  bytes(file: string): Buffer {
    const whole = path.join(this.folder, file);
    return fs.existsSync(whole) ? fs.readFileSync(whole) : Buffer.alloc(0);
  }

  remove(): void {
    vi.unstubAllEnvs();
    fs.rmSync(this.folder, { recursive: true, force: true });
  }
}
