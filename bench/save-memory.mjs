/** One save in a process of its own; reports how much its memory grew at most. For save-memory.bench.mjs. */
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { save } from '../dist/save/save.js';
import { SimulatedHost } from '../dist/testing.js';
import { startDrain } from './drain.mjs';
import { inFolder } from './tools.mjs';

const kib = (field) =>
  Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))[1]);

const [{ kind, memory }] = await once(process, 'message');
await inFolder(async (folder) => {
  const drain = await startDrain(join(folder, 'drain'));
  const host = new SimulatedHost({ memory: memory * 1.25 });
  // Few pages with something in them: what the guest holds does not count, and an empty page costs a save as much.
  const workload = { kind: 'hot-set', rate: 5000, filled: 0.05 };
  const guest = await host.createGuest({ kind, memory, workload });
  const send = async (options) => {
    const socket = createConnection(drain.path);
    await once(socket, 'connect');
    return save(host, { domid: guest.domid, to: socket, ...options });
  };
  const before = kib('VmRSS');
  // 5: the peak begins anew.
  writeFileSync('/proc/self/clear_refs', '5');
  const { p2mSize } = await send({ afterwards: 'suspended' });
  process.send({ peak: (kib('VmHWM') - before) * 1024, p2mSize });
  await host.close();
  drain.stop();
});
process.disconnect();
