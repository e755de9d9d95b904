import { defineBackend } from 'ublk-supervisor';
import { z } from 'zod';

/**
 * A read-only disk whose content is a file on an HTTP server that answers range requests. When the file changes there,
 * reads fail: half of one version and half of another would be worse.
 */
export default defineBackend({
  name: 'http-backend',
  options: z.strictObject({ url: z.url({ protocol: /^https?$/ }) }),
  async open({ url }, context) {
    // Compressed, the ranges would be those of something else.
    const headers = { 'accept-encoding': 'identity' };
    const head = await fetch(url, { method: 'HEAD', headers });
    if (!head.ok) throw new Error(`HEAD ${url} answered ${head.status}`);
    const size = Number(head.headers.get('content-length'));
    const version = versionOf(head);

    // The process that replaces this one must not go on with another version.
    const first = context.sharedMemory('version', 1024);
    const known = first.toString('utf8').replace(/\0+$/, '');
    if (known === '') first.write(version);
    else if (known !== version) throw new Error(`${url} has changed: ${known} is now ${version}`);

    return {
      size,
      readOnly: true,
      async read(buffer, offset) {
        const range = `${offset}-${offset + buffer.length - 1}`;
        // Connections are kept alive by fetch.
        const response = await fetch(url, { headers: { ...headers, range: `bytes=${range}` } });
        const body = Buffer.from(await response.arrayBuffer());
        if (response.status !== 206 || response.headers.get('content-range') !== `bytes ${range}/${size}`) {
          throw new Error(
            `GET ${url} bytes ${range} answered ${response.status} ${response.headers.get('content-range')}`,
          );
        }
        if (versionOf(response) !== version)
          throw new Error(`${url} has changed: ${version} is now ${versionOf(response)}`);
        return body.copy(buffer);
      },
    };
  },
});

/** @param {Response} response */
function versionOf({ headers }) {
  const version = headers.get('etag') ?? headers.get('last-modified');
  if (version === null) throw new Error('the server sends neither ETag nor Last-Modified, so a change would go unseen');
  return version;
}
