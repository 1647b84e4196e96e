#!/usr/bin/env node
/**
 * Plays xl. Its host is a folder, $FAKE_XL: one file for each domain, `ID` with its name in it; `mode` says how `restore`
 * goes wrong; `log` gets every command line, `stream` what was restored.
 */
import fs from 'node:fs';
import path from 'node:path';

const folder = process.env.FAKE_XL ?? '';
const at = (/** @type {string} */ name) => path.join(folder, name);
const [command, first = '', second = ''] = process.argv.slice(2);
fs.appendFileSync(at('log'), `${process.argv.slice(2).join(' ')}\n`);
const mode = fs.existsSync(at('mode')) ? fs.readFileSync(at('mode'), 'utf8') : '';

const domains = () => fs.readdirSync(folder).filter((name) => /^\d+$/.test(name));
const nameOf = (/** @type {string} */ id) => fs.readFileSync(at(id), 'utf8');

/** @param {string} text @returns {never} */
function fail(text) {
  process.stderr.write(`${text}\n`);
  process.exit(1);
}

/** @param {string} id */
function known(id) {
  if (!domains().includes(id)) fail(`${id} is an invalid domain identifier (rc=-6)`);
  return id;
}

switch (command) {
  case 'help':
    break;
  case 'domid': {
    const id = domains().find((id) => nameOf(id) === first);
    if (id === undefined) fail(`Can't get domid of domain name '${first}'`);
    console.log(id);
    break;
  }
  case 'domname':
    console.log(nameOf(known(first)));
    break;
  case 'pause':
  case 'unpause':
    known(first);
    break;
  case 'rename':
    fs.writeFileSync(at(known(first)), second);
    break;
  case 'destroy':
    known(first);
    if (mode === 'undestroyable') fail('libxl: error: it stays');
    if (mode === 'slow') await new Promise((resolve) => setTimeout(resolve, 60_000));
    fs.rmSync(at(first));
    break;
  case 'restore':
    await restore(process.argv.at(-1) ?? '');
    break;
  default:
    fail(`no such command: ${command}`);
}

/** @param {string} file */
async function restore(file) {
  fs.writeFileSync(at('helper'), process.env.LIBXL_SAVE_HELPER ?? '');
  process.on('SIGTERM', () => {
    if (mode !== 'stubborn') process.exit(143);
  });
  process.stderr.write('Parsing config from <saved>\n');
  if (mode === 'early') fail('libxl: error: no memory\nxc: progress: Frames: 1/2');
  const out = fs.openSync(at('stream'), 'w');
  let id = '';
  let last = Buffer.alloc(0);
  let length = 0;
  for await (const piece of fs.createReadStream(file, { highWaterMark: 4096 })) {
    fs.writeSync(out, piece);
    length += piece.length;
    last = Buffer.concat([last, piece]).subarray(-16);
    if (id === '') {
      const name = /"name":\s*"([^"]*)"/.exec(piece.toString('latin1'))?.[1] ?? 'none';
      id = String(Math.max(0, ...domains().map(Number)) + 1);
      fs.writeFileSync(at(id), name);
    }
    if (mode === 'middle' && length > 8000) {
      fs.rmSync(at(id));
      fail('libxl: error: libxl_stream_read.c: it is broken');
    }
    if (mode === 'killed' && length > 8000) process.kill(process.pid, 'SIGKILL');
    if (mode === 'stuck' && length > 8000) await new Promise((resolve) => setTimeout(resolve, 60_000));
  }
  if (!last.equals(Buffer.alloc(16))) {
    fs.rmSync(at(id));
    fail('libxl: error: the stream is truncated');
  }
  if (mode === 'late') {
    fs.rmSync(at(id));
    fail('libxl: error: no device model');
  }
  if (mode === 'endless') await new Promise((resolve) => setTimeout(resolve, 60_000));
}
