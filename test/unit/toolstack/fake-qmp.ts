/** A QEMU monitor for tests: says what it is told to, or answers like QEMU. Serves one client at a time, as QEMU does. */
import * as net from 'node:net';

/** What a command is answered with: a value to return, or `{ error }`; undefined: nothing. */
export type Answer =
  { readonly return: unknown } | { readonly error: { class: string; desc: string } } | undefined;

export interface FakeQmp extends AsyncDisposable {
  readonly path: string;
  /** Every command, with its arguments. */
  readonly commands: { readonly execute: string; readonly arguments: unknown; readonly id: unknown }[];
  /** Sends raw bytes to the client being served. */
  send(bytes: string | Uint8Array): void;
  /** Hangs up on the client being served. */
  drop(): void;
  close(): Promise<void>;
}

const GREETING = {
  QMP: { version: { qemu: { micro: 22, minor: 2, major: 7 }, package: 'fake' }, capabilities: ['oob'] },
};

/**
 * Starts one.
 *
 * @param options.greeting Sent to each client; undefined: none
 * @param options.answer Default: `{}` for each command
 */
export async function startFakeQmp(options: {
  path: string;
  greeting?: string | undefined;
  answer?: ((command: string, args: unknown) => Answer) | undefined;
}): Promise<FakeQmp> {
  const greeting = 'greeting' in options ? options.greeting : `${JSON.stringify(GREETING)}\r\n`;
  const commands: FakeQmp['commands'] = [];
  const waiting: net.Socket[] = [];
  let served: net.Socket | undefined;
  const serve = (socket: net.Socket | undefined): void => {
    served = socket;
    if (socket === undefined) return;
    if (greeting !== undefined) socket.write(greeting);
    let text = '';
    socket.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      for (;;) {
        const end = text.indexOf('\n');
        if (end < 0) return;
        const command = JSON.parse(text.slice(0, end)) as FakeQmp['commands'][number];
        text = text.slice(end + 1);
        commands.push(command);
        const answer = (options.answer ?? (() => ({ return: {} })))(command.execute, command.arguments);
        if (answer !== undefined) socket.write(`${JSON.stringify({ ...answer, id: command.id })}\r\n`);
      }
    });
  };
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined);
    socket.on('close', () => {
      const at = waiting.indexOf(socket);
      if (at >= 0) waiting.splice(at, 1);
      if (served === socket) serve(waiting.shift());
    });
    if (served === undefined) serve(socket);
    else waiting.push(socket);
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.path, resolve);
  });
  const close = (): Promise<void> => {
    for (const socket of [...waiting, served]) socket?.destroy();
    return new Promise((resolve) => server.close(() => resolve()));
  };
  return {
    path: options.path,
    commands,
    send: (bytes) => served?.write(bytes),
    drop: () => served?.destroy(),
    close,
    [Symbol.asyncDispose]: close,
  };
}
