/**
 * Makes a legacy image of a file of xl save, in dom0: `node legacy.js FILE TARGET`. A process of its own, as it holds the
 * guest. The writer of legacy images is that of the tests (test/legacy), made by test/legacy/build.js.
 */
import fs from 'node:fs';

const [file = '', target = ''] = process.argv.slice(2);
const writer = '/project/node_modules/.cache/xen-migration/legacy/from-v2.js';
const { legacyPiecesFromV2 } = await import(writer);

/** Offset of the mandatory flags, the bit that says v2, offset of the optional data's length, and of that data. */
const [FLAGS, V2, LENGTH, DATA] = [36, 2, 44, 48];

const stream = fs.readFileSync(file);
const header = Buffer.from(stream.subarray(0, DATA + stream.readUInt32LE(LENGTH)));
header.writeUInt32LE(header.readUInt32LE(FLAGS) & ~V2, FLAGS);
const { pieces, dropped } = legacyPiecesFromV2(stream.subarray(header.length), { x87: true });
const out = fs.openSync(target, 'w');
fs.writeSync(out, header);
for (const { bytes } of pieces) for (let at = 0; at < bytes.length;) at += fs.writeSync(out, bytes, at);
fs.closeSync(out);
console.log(`left out: ${dropped.join(', ') || 'nothing'}`);
