/**
 * An xenstored for tests, in this process: nodes, permissions, watches and transactions over a Unix socket. It
 * follows docs/misc/xenstore.txt; test/differential/xenstored.test.ts holds the client against the real one.
 */
import * as fs from 'node:fs';
import * as net from 'node:net';
import * as path from 'node:path';
import { XenstoreError } from '../../../lib/errors.js';
import {
  MessageReader,
  XENSTORE_PAYLOAD_MAX,
  XenstoreType,
  encodeMessage,
  typeName,
  type XenstoreMessage,
  type XenstoreOperation,
} from '../../../lib/toolstack/xenstore/wire.js';

const T = XenstoreType;
const OK = 'OK\0';

/** Answers with an error: `throw new Refusal('ENOENT')`. */
export class Refusal extends Error {}

interface Transaction {
  readonly id: number;
  readonly began: number;
  readonly store: Map<string, string>;
  readonly seen: Set<string>;
  readonly written: Map<string, Change[2]>;
}

interface Client {
  readonly socket: net.Socket;
  readonly watches: { path: string; token: string }[];
  readonly transactions: Map<number, Transaction>;
}

export interface FakeXenstored extends AsyncDisposable {
  /** The socket. */
  readonly path: string;
  /** Value of each node (bytes as latin1) under its absolute path. `/` is not in it. To read; change it by `write`. */
  readonly store: ReadonlyMap<string, string>;
  /** Domains introduced: domid → ring and port. */
  readonly introduced: ReadonlyMap<number, { readonly gfn: number; readonly port: number }>;
  /** Domids of XS_RESUME, in their order. */
  readonly resumed: readonly number[];
  /** Every request, as `XS_READ /path`, in the order in which they came. */
  readonly requests: readonly string[];
  /** Connections that are open. */
  readonly connections: number;
  /** Watches that are set, as `path`. */
  readonly watched: readonly string[];
  /** Writes a node, or removes it and all below (undefined), as another domain would; watches fire. */
  write(path: string, value: string | undefined): void;
  /** Fires the watches of a special event: `@releaseDomain`. */
  fire(event: string): void;
  /** The next `n` commits answer EAGAIN. */
  conflict(n: number): void;
  /** Answers to requests of this kind are kept back until the function that is returned is called. */
  hold(operation: XenstoreOperation): () => void;
  /** Called with each change of a node: the place to play a guest or a back end. */
  onWrite: ((path: string, value: string | undefined) => void) | undefined;
  /** Breaks all connections. */
  drop(): void;
  close(): Promise<void>;
}

/** Starts one whose socket is `<dir>/socket`. */
export async function startFakeXenstored(options: { dir: string }): Promise<FakeXenstored> {
  const server = new Server(path.join(options.dir, 'socket'));
  await server.listen();
  return server;
}

class Server implements FakeXenstored {
  readonly path: string;
  readonly store = new Map<string, string>();
  readonly introduced = new Map<number, { gfn: number; port: number }>();
  readonly resumed: number[] = [];
  readonly requests: string[] = [];
  onWrite: ((path: string, value: string | undefined) => void) | undefined;
  readonly #server: net.Server;
  readonly #clients = new Set<Client>();
  readonly #permissions = new Map<string, string>();
  /** When each node, or the list of its children, was last changed. */
  readonly #changed = new Map<string, number>();
  readonly #held = new Map<number, (() => void)[]>();
  #time = 0;
  #conflicts = 0;
  #lastTransaction = 0;

  constructor(socketPath: string) {
    this.path = socketPath;
    this.#server = net.createServer((socket) => this.#accept(socket));
  }

  get connections(): number {
    return this.#clients.size;
  }

  get watched(): string[] {
    return [...this.#clients].flatMap((client) => client.watches.map((watch) => watch.path));
  }

  listen(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(this.path, resolve);
    });
  }

  write(node: string, value: string | undefined): void {
    if (value === undefined) this.#remove(node);
    else this.#apply(creation(this.store, node, value));
  }

  fire(event: string): void {
    this.#notify(event);
  }

  conflict(n: number): void {
    this.#conflicts = n;
  }

  hold(operation: XenstoreOperation): () => void {
    this.#held.set(T[operation], []);
    return () => {
      const answers = this.#held.get(T[operation]) ?? [];
      this.#held.delete(T[operation]);
      for (const answer of answers) answer();
    };
  }

  drop(): void {
    for (const { socket } of this.#clients) socket.destroy();
  }

  close(): Promise<void> {
    this.drop();
    return new Promise((resolve) => {
      this.#server.close(() => {
        fs.rmSync(this.path, { force: true });
        resolve();
      });
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #accept(socket: net.Socket): void {
    const client: Client = { socket, watches: [], transactions: new Map() };
    const reader = new MessageReader();
    this.#clients.add(client);
    socket.on('error', () => undefined);
    socket.on('close', () => this.#clients.delete(client));
    socket.on('data', (chunk: Uint8Array) => {
      try {
        reader.push(chunk, (message) => this.#onMessage(client, message));
      } catch (error) {
        if (!(error instanceof XenstoreError)) throw error;
        // Too long: xenstored throws such a client out.
        socket.destroy();
      }
    });
  }

  #onMessage(client: Client, message: XenstoreMessage): void {
    const operation = typeName(message.type);
    const text = latin1(message.body);
    this.requests.push(`${operation} ${text.split('\0', 1)[0] ?? ''}`.trimEnd());
    const after: (() => void)[] = [];
    let type = operation;
    let body: string;
    try {
      body = this.#answer(client, message, text, after);
      if (body.length > XENSTORE_PAYLOAD_MAX) throw new Refusal('E2BIG');
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      type = 'XS_ERROR';
      body = `${error.message}\0`;
    }
    const send = (): void => {
      const known = type as XenstoreOperation;
      client.socket.write(encodeMessage(known, message.reqId, message.txId, [Buffer.from(body, 'latin1')]));
      for (const step of after) step();
    };
    const held = this.#held.get(message.type);
    if (held === undefined) send();
    else held.push(send);
  }

  /** @param after What happens once the answer is out */
  #answer(client: Client, { type, txId }: XenstoreMessage, text: string, after: (() => void)[]): string {
    const [first = '', second = '', third = ''] = text.split('\0');
    const tx = txId === 0 ? undefined : client.transactions.get(txId);
    if (txId !== 0 && tx === undefined) throw new Refusal('ENOENT');
    const store = tx?.store ?? this.store;
    const look = (node: string): string => {
      if (!isPath(node)) throw new Refusal('EINVAL');
      tx?.seen.add(node);
      const value = node === '/' ? '' : store.get(node);
      if (value === undefined) throw new Refusal('ENOENT');
      return value;
    };
    const change = (changes: Change[]): string => {
      for (const [node] of changes) if (!isPath(node) || node === '/') throw new Refusal('EINVAL');
      if (tx === undefined) {
        this.#set(changes);
        after.push(() => this.#tell(changes));
        return OK;
      }
      for (const [node, value, tells] of changes) {
        tx.seen.add(node);
        tx.written.set(node, tells);
        if (value === undefined) tx.store.delete(node);
        else tx.store.set(node, value);
      }
      return OK;
    };
    switch (type) {
      case T.XS_READ:
        return look(first);
      case T.XS_WRITE:
        return change(creation(store, first, text.slice(first.length + 1)));
      case T.XS_MKDIR:
        if (store.has(first)) return OK;
        return change(creation(store, first, ''));
      case T.XS_RM:
        if (first === '/') throw new Refusal('EINVAL');
        if (!store.has(first)) {
          look(parentOf(first));
          return OK;
        }
        return change(removal(store, first));
      case T.XS_DIRECTORY:
        look(first);
        return children(store, first);
      case T.XS_DIRECTORY_PART: {
        look(first);
        const part = `${children(store, first)}\0`.slice(Number(second));
        return `${this.#changed.get(first) ?? 0}\0${part}`.slice(0, XENSTORE_PAYLOAD_MAX);
      }
      case T.XS_GET_PERMS:
        look(first);
        return this.#permissions.get(first) ?? 'n0\0';
      case T.XS_SET_PERMS:
        look(first);
        this.#permissions.set(first, text.slice(first.length + 1));
        after.push(() => this.#notify(first));
        return OK;
      case T.XS_WATCH: {
        if (!isPath(first) && !first.startsWith('@')) throw new Refusal('EINVAL');
        const watch = { path: first, token: second };
        if (client.watches.some((other) => other.path === first && other.token === second)) {
          throw new Refusal('EEXIST');
        }
        client.watches.push(watch);
        after.push(() => this.#send(client, first, second));
        return OK;
      }
      case T.XS_UNWATCH: {
        const at = client.watches.findIndex((watch) => watch.path === first && watch.token === second);
        if (at < 0) throw new Refusal('ENOENT');
        client.watches.splice(at, 1);
        return OK;
      }
      case T.XS_RESET_WATCHES:
        client.watches.length = 0;
        client.transactions.clear();
        return OK;
      case T.XS_TRANSACTION_START: {
        if (tx !== undefined) throw new Refusal('EBUSY');
        this.#lastTransaction += 1;
        const id = this.#lastTransaction;
        const began = this.#time;
        client.transactions.set(id, {
          id,
          began,
          store: new Map(store),
          seen: new Set(),
          written: new Map(),
        });
        return `${id}\0`;
      }
      case T.XS_TRANSACTION_END:
        if (tx === undefined) throw new Refusal('ENOENT');
        client.transactions.delete(tx.id);
        if (first === 'T') this.#commit(tx, after);
        return OK;
      case T.XS_INTRODUCE:
        this.introduced.set(domidOf(first), { gfn: Number(second), port: Number(third) });
        after.push(() => this.#notify('@introduceDomain'));
        return OK;
      case T.XS_RELEASE:
        if (!this.introduced.delete(domidOf(first))) throw new Refusal('ENOENT');
        after.push(() => this.#notify('@releaseDomain'));
        return OK;
      case T.XS_RESUME:
        if (!this.introduced.has(domidOf(first))) throw new Refusal('ENOENT');
        this.resumed.push(domidOf(first));
        return OK;
      case T.XS_GET_DOMAIN_PATH:
        return `/local/domain/${domidOf(first)}\0`;
      case T.XS_IS_DOMAIN_INTRODUCED:
        return domidOf(first) === 0 || this.introduced.has(domidOf(first)) ? 'T\0' : 'F\0';
      default:
        throw new Refusal('ENOSYS');
    }
  }

  /** EAGAIN if anything that the transaction looked at has changed since it began. */
  #commit(tx: Transaction, after: (() => void)[]): void {
    const stale = [...tx.seen].some((node) => (this.#changed.get(node) ?? 0) > tx.began);
    if (stale || this.#conflicts > 0) {
      if (this.#conflicts > 0) this.#conflicts -= 1;
      throw new Refusal('EAGAIN');
    }
    const changes = [...tx.written].map(([node, tells]): Change => [node, tx.store.get(node), tells]);
    this.#set(changes);
    after.push(() => this.#tell(changes));
  }

  #remove(node: string): void {
    this.#apply(removal(this.store, node));
  }

  #apply(changes: readonly Change[]): void {
    this.#set(changes);
    this.#tell(changes);
  }

  #set(changes: readonly Change[]): void {
    this.#time += 1;
    for (const [node, value] of changes) {
      if (value === undefined) this.store.delete(node);
      else this.store.set(node, value);
      this.#changed.set(node, this.#time);
      this.#changed.set(parentOf(node), this.#time);
    }
  }

  #tell(changes: readonly Change[]): void {
    for (const [node, value, tells] of changes) {
      if (tells !== 'none') this.#notify(node, tells === 'exact');
      this.onWrite?.(node, value);
    }
  }

  #notify(node: string, exact = false): void {
    for (const client of this.#clients) {
      for (const watch of client.watches) {
        const above = watch.path === '/' ? node.startsWith('/') : node.startsWith(`${watch.path}/`);
        if (node === watch.path || (above && !exact)) {
          this.#send(client, node, watch.token);
        }
      }
    }
  }

  #send(client: Client, node: string, token: string): void {
    client.socket.write(
      encodeMessage('XS_WATCH_EVENT', 0, 0, [Buffer.from(`${node}\0${token}\0`, 'latin1')]),
    );
  }
}

/**
 * A node's path and its new value, undefined if it goes; and whose watches fire: of all above it too, of this very
 * node (it goes with its parent), or none (a parent that was made on the way).
 */
type Change = readonly [path: string, value: string | undefined, tells: 'above' | 'exact' | 'none'];

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1');
}

/** `/` or segments of the permitted characters. */
function isPath(node: string): boolean {
  return node === '/' || (/^(?:\/[\w@-]+)+$/.test(node) && node.length <= 2048);
}

function parentOf(node: string): string {
  return node.slice(0, node.lastIndexOf('/')) || '/';
}

/** Parents of a node that do not exist, topmost first. */
function missing(store: ReadonlyMap<string, string>, node: string): string[] {
  const parents: string[] = [];
  for (let at = parentOf(node); at !== '/' && !store.has(at); at = parentOf(at)) parents.unshift(at);
  return parents;
}

/** Sets a node; its parents are made on the way. */
function creation(store: ReadonlyMap<string, string>, node: string, value: string): Change[] {
  return [...missing(store, node).map((parent): Change => [parent, '', 'none']), [node, value, 'above']];
}

/** Removes a node and all below it. */
function removal(store: ReadonlyMap<string, string>, node: string): Change[] {
  return below(store, node).map((other) => [other, undefined, other === node ? 'above' : 'exact']);
}

/** A node and all below it. */
function below(store: ReadonlyMap<string, string>, node: string): string[] {
  return [...store.keys()].filter((other) => other === node || other.startsWith(`${node}/`));
}

/** Names of a node's children, each with its NUL. */
function children(store: ReadonlyMap<string, string>, node: string): string {
  const prefix = node === '/' ? '/' : `${node}/`;
  const names = [...store.keys()]
    .filter((other) => other.startsWith(prefix))
    .map((other) => other.slice(prefix.length));
  return names
    .filter((name) => !name.includes('/'))
    .map((name) => `${name}\0`)
    .join('');
}

function domidOf(text: string): number {
  if (!/^\d{1,5}$/.test(text)) throw new Refusal('EINVAL');
  return Number(text);
}
