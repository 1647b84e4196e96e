/** What can be done with the nodes of xenstore, inside and outside of transactions. */
import { Errno } from '../../abi/errno.js';
import { XenstoreError } from '../../errors.js';
import type { Request, XenstoreOptions } from './connection.js';
import {
  decodeDirectoryPart,
  decodePermissions,
  decodeString,
  decodeStrings,
  encodePath,
  encodePermissions,
  encodeString,
  encodeValue,
  protocolError,
  type XenstoreOperation,
  type XenstorePermission,
} from './wire.js';

/** Bytes of names that `list` takes from one node. */
const LIST_MAX = 4 * 1024 * 1024;
/** Times that `list` begins anew because the node changed while it was read in pieces. */
const LIST_ATTEMPTS = 20;

/**
 * Reading and changing nodes. Paths are absolute, without a slash at the end. All methods reject with XenstoreError
 * (`errno` as xenstored gave it, ECONNRESET once the connection is lost), TimeoutError or CancelledError, and with
 * UsageError for a path that cannot be sent.
 */
export abstract class XenstoreNodes {
  /** Sends a request in this scope. */
  protected abstract request(request: Request): Promise<Uint8Array>;

  /** The value of a node as text (UTF-8; one NUL at its end is dropped). Undefined if there is no such node. */
  async read(path: string, options?: XenstoreOptions): Promise<string | undefined> {
    const value = await this.readBytes(path, options);
    return value === undefined ? undefined : decodeString(value);
  }

  /** The value of a node as it stands; the caller's own. Undefined if there is no such node. */
  readBytes(path: string, options?: XenstoreOptions): Promise<Uint8Array | undefined> {
    return absentAs(undefined, this.#onPath('XS_READ', path, options));
  }

  /** Sets the value of a node. Makes the node and its parents if need be. No NUL is added. */
  async write(path: string, value: string | Uint8Array, options?: XenstoreOptions): Promise<void> {
    await this.#onPath('XS_WRITE', path, options, encodeValue(value));
  }

  /** Makes a node with an empty value, and its parents. Leaves one that exists as it is. */
  async mkdir(path: string, options?: XenstoreOptions): Promise<void> {
    await this.#onPath('XS_MKDIR', path, options);
  }

  /** Removes a node and all below it. Nothing happens if it does not exist. */
  async remove(path: string, options?: XenstoreOptions): Promise<void> {
    await absentAs(undefined, this.#onPath('XS_RM', path, options));
  }

  /** Names of a node's children, without their path; empty if the node does not exist. */
  async list(path: string, options?: XenstoreOptions): Promise<string[]> {
    try {
      return decodeStrings('XS_DIRECTORY', await this.#onPath('XS_DIRECTORY', path, options));
    } catch (error) {
      if (!(error instanceof XenstoreError)) throw error;
      if (error.errno === Errno.ENOENT) return [];
      if (error.errno !== Errno.E2BIG) throw error;
      return this.#listInParts(path, options, error);
    }
  }

  /** Permissions of a node; the first names its owner. Undefined if there is no such node. */
  async getPermissions(path: string, options?: XenstoreOptions): Promise<XenstorePermission[] | undefined> {
    const body = await absentAs(undefined, this.#onPath('XS_GET_PERMS', path, options));
    return body === undefined ? undefined : decodePermissions(body);
  }

  /** Sets the permissions of a node; the first becomes its owner. */
  async setPermissions(
    path: string,
    permissions: readonly XenstorePermission[],
    options?: XenstoreOptions,
  ): Promise<void> {
    await this.#onPath('XS_SET_PERMS', path, options, encodePermissions(permissions));
  }

  async #onPath(
    operation: XenstoreOperation,
    path: string,
    options: XenstoreOptions | undefined,
    rest?: Uint8Array,
  ): Promise<Uint8Array> {
    const parts = rest === undefined ? [encodePath(path)] : [encodePath(path), rest];
    return this.request({ ...options, operation, path, parts });
  }

  /** A list longer than one message, piece by piece; anew if the node changed meanwhile. */
  async #listInParts(
    path: string,
    options: XenstoreOptions | undefined,
    tooLong: XenstoreError,
  ): Promise<string[]> {
    try {
      for (let attempt = 0; attempt < LIST_ATTEMPTS; attempt++) {
        const names = await this.#listOnce(path, options);
        if (names !== undefined) return names;
      }
    } catch (error) {
      // A xenstored before 4.9 does not know the request.
      throw error instanceof XenstoreError && error.errno === Errno.ENOSYS ? tooLong : error;
    }
    throw new XenstoreError(
      'XS_DIRECTORY_PART',
      Errno.EAGAIN,
      'the node changes faster than it can be read',
      {
        path,
      },
    );
  }

  /** @returns undefined if the node changed between two pieces */
  async #listOnce(path: string, options: XenstoreOptions | undefined): Promise<string[] | undefined> {
    const pieces: Uint8Array[] = [];
    let length = 0;
    let first: string | undefined;
    for (;;) {
      const offset = encodeString(String(length));
      const { generation, list } = decodeDirectoryPart(
        await this.#onPath('XS_DIRECTORY_PART', path, options, offset),
      );
      if (generation !== (first ??= generation)) return undefined;
      pieces.push(list);
      length += list.length;
      if (length > LIST_MAX) throw protocolError('XS_DIRECTORY_PART', `more than ${LIST_MAX} bytes of names`);
      const all = endOf(pieces);
      if (all !== undefined) return decodeStrings('XS_DIRECTORY_PART', all);
      if (list.length === 0) throw protocolError('XS_DIRECTORY_PART', 'the list does not end');
    }
  }
}

/** All pieces without the empty name that ends the list, or undefined if it has not come yet. */
function endOf(pieces: readonly Uint8Array[]): Uint8Array | undefined {
  const last = pieces.at(-1) as Uint8Array;
  // The two NULs of the end may come in two pieces.
  const before = last.length > 1 ? last.at(-2) : pieces.at(-2)?.at(-1);
  if (last.at(-1) !== 0 || (before ?? 0) !== 0) return undefined;
  const all = Buffer.concat(pieces);
  return all.subarray(0, all.length - 1);
}

/** A promise's value, or `value` if xenstored answers that there is no such node. */
async function absentAs<T, V>(value: V, promise: Promise<T>): Promise<T | V> {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof XenstoreError && error.errno === Errno.ENOENT) return value;
    throw error;
  }
}
