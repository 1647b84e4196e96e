/** Version of the package. test/unit/version.test.ts compares it with package.json. */
export const VERSION = '0.1.0';

/** How this library names itself to peers. */
export const SOFTWARE = `xen-migration/${VERSION}`;
