/** An image of the catalogue, and how the catalogue is put together. */

import { joinPieces, legacyPieces, xendHeader, xlHeader, type ImageSpec, type Piece } from './writer.js';

/** What convert-legacy-stream of Xen 4.17 does with an image. */
export type Upstream =
  | { readonly exit: 0 }
  /** 1 refused, 2 not implemented there. `why`: words of its complaint. */
  | { readonly exit: 1 | 2; readonly why: string };

export const accepted: Upstream = { exit: 0 };

export function refused(why: string): Upstream {
  return { exit: 1, why };
}

export function notImplemented(why = 'todo'): Upstream {
  return { exit: 2, why };
}

export interface Example {
  readonly name: string;
  readonly description: string;
  readonly guest: 'pv' | 'hvm';
  /** Bits of the toolstack's word. */
  readonly width: 32 | 64;
  /** The whole file. */
  readonly bytes: () => Uint8Array;
  /** The legacy stream in it, without the header of xl or xend. */
  readonly stream: () => Uint8Array;
  /** The stream in pieces; only of images that were written here. */
  readonly pieces: (() => Piece[]) | undefined;
  readonly envelope: 'none' | 'xl' | 'xend';
  /** Of the stream. */
  readonly upstream: Upstream;
  /**
   * A plain image that upstream converts to the same guest, for images that are not plain. Of an image of Remus: its
   * last complete checkpoint.
   */
  readonly like: ImageSpec | undefined;
  /** Parameters that the guest has beside those of `like`. */
  readonly params: readonly (readonly [index: number, value: bigint])[];
  /** False: its file is not here. */
  readonly present: boolean;
  /** Whether it is small enough to be damaged some hundred times. */
  readonly small: boolean;
}

/** What an example says beside its image. */
export interface About {
  readonly description: string;
  readonly upstream?: Upstream;
  readonly like?: ImageSpec;
  readonly params?: readonly (readonly [number, bigint])[];
  /** Before the image: the header of xl with this configuration, or `null` for none, or that of xend. */
  readonly xl?: string | null;
  readonly xend?: string;
  /** Bytes behind the image. */
  readonly after?: Uint8Array;
  /** The file ends before its end: so many bytes of the stream are there; negative: so many are missing. */
  readonly cut?: number;
}

/** Makes an example of a specification. */
export function example(name: string, spec: ImageSpec, about: About): Example {
  const { description, upstream = accepted, like, params = [], xl, xend, after, cut } = about;
  const whole = (): Piece[] => [
    ...legacyPieces(spec),
    ...(after === undefined ? [] : [{ name: 'after the image', bytes: after }]),
  ];
  const stream = (): Uint8Array => joinPieces(whole()).slice(0, cut);
  const header =
    xl !== undefined ? xlHeader(xl ?? undefined) : xend !== undefined ? xendHeader(xend) : new Uint8Array(0);
  return {
    name,
    description,
    guest: spec.guest === 'hvm' ? 'hvm' : 'pv',
    width: spec.word === 4 ? 32 : 64,
    bytes: () =>
      joinPieces([
        { name: 'header', bytes: header },
        { name: 'stream', bytes: stream() },
      ]),
    stream,
    pieces: cut === undefined ? whole : undefined,
    envelope: xl !== undefined ? 'xl' : xend !== undefined ? 'xend' : 'none',
    upstream,
    like,
    params,
    present: true,
    small: cut === undefined && whole().reduce((sum, { bytes }) => sum + bytes.length, 0) < 1 << 18,
  };
}

/** The same image written by toolstacks of both word sizes. The name gets the word's bits. */
export function bothWords(name: string, spec: Omit<ImageSpec, 'word'>, about: About): Example[] {
  return ([8, 4] as const).map((word) => {
    const like = about.like === undefined ? {} : { like: { ...about.like, word } };
    return example(`${name}, ${8 * word}-bit toolstack`, { ...spec, word }, { ...about, ...like });
  });
}
