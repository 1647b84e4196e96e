/**
 * The rooms of lib/, from the roof to the floor, and the import rules that follow from their order. A room may
 * import from itself and from rooms further down this list, never from one further up. eslint.config.js turns the
 * list into rules; test/package/boundaries.test.ts proves that they bite.
 */

/** Folders of lib/, topmost first. lib/index.ts and lib/testing.ts stand above them, other files of lib/ below. */
export const rooms = [
  'cli',
  'helper',
  'migrate',
  'checkpoint',
  'save',
  'restore',
  'convert',
  'stream',
  'host',
  'toolstack',
  'transport',
  'abi',
  'bytes',
];

/** Entry files that may import every room and that no room may import. */
export const entries = ['index', 'testing'];

/**
 * Rooms that describe bytes and never move them: they import no module of Node that reaches outside the process, and
 * nothing of the rooms that move bytes but the form of a source and a sink.
 */
export const pureRooms = ['stream', 'abi', 'bytes'];

/** Rooms that move bytes or reach a machine. */
export const movingRooms = ['host', 'toolstack', 'transport'];

/** What a pure room may import of them: types alone. */
export const formsOnly = 'transport/types.js';

/** Folders inside a room that do not know each other. */
const strangers = [['host/simulated', 'host/xen']];

/** The one folder that may import a package: the loader of the native addon. */
const addonFolder = 'host/xen';

const ioModules = [
  'child_process',
  'cluster',
  'dgram',
  'dns',
  'fs',
  'http',
  'http2',
  'https',
  'inspector',
  'net',
  'os',
  'readline',
  'tls',
  'tty',
  'worker_threads',
];

/** Folders below a room that get rules of their own depth: lib/<room>/<a>/<b>/<c>/file.ts is the deepest. */
const maxDepth = 4;

/**
 * @typedef {{ regex: string, message: string }} Restriction a forbidden module specifier, as a regular expression
 */

/**
 * @param {string[]} names
 * @returns {string} an alternation that matches one of the names as a whole path segment or file
 */
const anyOf = (names) => `(?:${names.join('|')})(?:/|\\.js$|$)`;

/** @type {Restriction[]} */
const everywhere = [
  { regex: '(?:^\\./|[^./]/)\\.\\./', message: 'Write the path straight: no ".." after a folder.' },
];

/** @type {Restriction} */
const noPackages = {
  regex: '^(?!\\.{1,2}/|node:|\\.{1,2}$)',
  message: 'lib/ uses Node core alone, with the node: prefix; only the addon loader imports a package.',
};

/** @type {Restriction} */
const onlyBindings = {
  regex: '^(?!\\.{1,2}/|node:|\\.{1,2}$|bindings$)',
  message: 'The addon loader imports `bindings` and no other package.',
};

/** @type {Restriction} */
const noIo = {
  regex: `^node:(?:${ioModules.join('|')})(?:/|$)`,
  message: 'This room describes bytes and does no I/O.',
};

/**
 * What a file of a room must not import.
 *
 * @param {string} folder the room, or a folder inside it: `stream`, `host/xen`
 * @param {number} depth folders between lib/ and the file; 0 for a file of lib/ itself
 * @param {string[]} above names in lib/ that stand above the file
 * @returns {Restriction[]}
 */
function restrictions(folder, depth, above) {
  const toLib = depth === 0 ? '\\./' : `(?:\\.\\./){${depth}}`;
  const list = [
    ...everywhere,
    folder === addonFolder ? onlyBindings : noPackages,
    { regex: `^(?:\\.\\./){${depth + 1}}`, message: 'lib/ imports nothing outside lib/.' },
  ];
  if (above.length > 0) {
    list.push({
      regex: `^${toLib}${anyOf(above)}`,
      message: `A room imports only from rooms below it: ${folder || 'lib/*.ts'} is below ${above.join(', ')}.`,
    });
  }
  const pure = pureRooms.includes(folder);
  if (pure || folder === '') list.push(noIo);
  const reachable = movingRooms.filter((room) => !above.includes(room));
  if (pure && reachable.length > 0) {
    list.push({
      regex: `^${toLib}(?!${formsOnly.replaceAll('.', '\\.')}$)${anyOf(reachable)}`,
      message: `This room describes bytes: of what moves them it knows ${formsOnly} alone.`,
    });
  }
  for (const pair of strangers) {
    const other = pair.find((name) => name !== folder);
    if (!pair.includes(folder) || !other) continue;
    list.push({ regex: `^${toLib}${other}/`, message: `${folder} and ${other} do not know each other.` });
    const sibling = other.slice(other.lastIndexOf('/') + 1);
    list.push({
      regex: `^(?:\\.\\./){${depth - 1}}${sibling}/`,
      message: `${folder} and ${other} do not know each other.`,
    });
  }
  return list;
}

/**
 * The rules of one config block. no-restricted-imports sees import and export declarations; the syntax rule sees
 * `import()` and `import('…').Type`.
 *
 * @param {Restriction[]} list
 */
function rules(list) {
  return {
    'no-restricted-imports': [
      'error',
      { patterns: list.map(({ regex, message }) => ({ regex, message, caseSensitive: true })) },
    ],
    'no-restricted-syntax': [
      'error',
      ...list.flatMap(({ regex, message }) => {
        const source = `/${regex.replaceAll('/', '\\u002F')}/`;
        return [
          { selector: `ImportExpression > Literal[value=${source}]`, message },
          { selector: `TSImportType Literal[value=${source}]`, message },
        ];
      }),
    ],
  };
}

/**
 * @returns {{ name: string, files: string[], ignores?: string[], rules: Record<string, any> }[]} config blocks, one
 *   for each room and depth, since a relative path means something else at each depth
 */
export function boundaryConfigs() {
  const blocks = [];
  const entryFiles = entries.map((name) => `lib/${name}.ts`);
  blocks.push({
    name: 'rooms/entries',
    files: entryFiles,
    rules: rules(restrictions('index', 0, [])),
  });
  blocks.push({
    name: 'rooms/floor',
    files: ['lib/*.ts'],
    ignores: entryFiles,
    rules: rules(restrictions('', 0, [...entries, ...rooms])),
  });
  const inner = strangers.flat();
  rooms.forEach((room, index) => {
    const above = [...entries, ...rooms.slice(0, index)];
    for (let depth = 1; depth <= maxDepth; depth++) {
      const ignores = inner
        .filter((folder) => folder.startsWith(`${room}/`))
        .map((folder) => `lib/${folder}/**`);
      blocks.push({
        name: `rooms/${room}/${depth}`,
        files: [`lib/${room}/${'*/'.repeat(depth - 1)}*.ts`],
        ...(ignores.length > 0 ? { ignores } : {}),
        rules: rules(restrictions(room, depth, above)),
      });
    }
    for (const folder of inner.filter((name) => name.startsWith(`${room}/`))) {
      for (let depth = 2; depth <= maxDepth; depth++) {
        blocks.push({
          name: `rooms/${folder}/${depth}`,
          files: [`lib/${folder}/${'*/'.repeat(depth - 2)}*.ts`],
          rules: rules(restrictions(folder, depth, above)),
        });
      }
    }
  });
  return blocks;
}
