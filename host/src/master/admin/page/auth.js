// How the page talks to the server without ever sending its token: it signs each request, and takes no response that the
// server has not signed. See signature.rs for the wire. Needs nothing of a document, so that it can be tested without one.
"use strict";

/** SHA-256 of bytes. Written out, since crypto.subtle is there for https and localhost only. */
const sha256 = (() => {
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const fraction = (x) => ((x - Math.floor(x)) * 0x100000000) | 0;
  const K = primes.map((p) => fraction(Math.cbrt(p)));
  const START = primes.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
  const turn = (x, n) => (x >>> n) | (x << (32 - n));
  return (bytes) => {
    const size = ((bytes.length + 8) >> 6) + 1;
    const view = new DataView(new ArrayBuffer(size * 64));
    bytes.forEach((byte, at) => view.setUint8(at, byte));
    view.setUint8(bytes.length, 0x80);
    view.setUint32(size * 64 - 4, bytes.length * 8);
    const hash = [...START];
    const w = new Int32Array(64);
    for (let block = 0; block < size; block++) {
      for (let t = 0; t < 16; t++) w[t] = view.getInt32(block * 64 + t * 4);
      for (let t = 16; t < 64; t++) {
        const s0 = turn(w[t - 15], 7) ^ turn(w[t - 15], 18) ^ (w[t - 15] >>> 3);
        const s1 = turn(w[t - 2], 17) ^ turn(w[t - 2], 19) ^ (w[t - 2] >>> 10);
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
      }
      let [a, b, c, d, e, f, g, h] = hash;
      for (let t = 0; t < 64; t++) {
        const t1 = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[t] + w[t]) | 0;
        const t2 = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
      }
      [a, b, c, d, e, f, g, h].forEach((word, at) => { hash[at] = (hash[at] + word) | 0; });
    }
    return hash.flatMap((word) => [word >>> 24, (word >>> 16) & 255, (word >>> 8) & 255, word & 255]);
  };
})();

/** What is signed is ASCII: a token, a host, a path. */
const ascii = (text) => Array.from(text, (c) => c.charCodeAt(0) & 255);

/** HMAC-SHA256 over the parts, as hexadecimal digits. The token has 64 characters: a block, which needs no hashing. */
function mac(token, ...parts) {
  const key = Array.from({ length: 64 }, (_, at) => token.charCodeAt(at) & 255);
  const inner = sha256([...key.map((byte) => byte ^ 0x36), ...ascii(parts.join("\n"))]);
  const outer = sha256([...key.map((byte) => byte ^ 0x5c), ...inner]);
  return outer.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const isToken = (text) => /^[0-9a-fA-F]{64}$/.test(text);

/** No response, or none that can be read: the server is gone, or cannot be reached. */
class Unreachable extends Error {}
/** The server has not proved that it knows the token: it is another one, or the token was replaced. */
class Unknown extends Error {}

/** What a proxy answers while the server is away. */
const AWAY = [502, 503, 504];
/** How often a request is signed anew, if the challenge has become too old on its way. */
const TRIES = 3;

/**
 * Talks to the server that knows `token`. `send(method, path, headers)` is fetch, or what stands in for it: it returns
 * { status, proof, body }.
 */
class Session {
  #challenge = null;

  constructor(token, host, send) {
    Object.assign(this, { token, host, send });
  }

  /** The response of the server that knows the token. Throws Unreachable or Unknown; then nothing secret has left the page. */
  async call(method, path) {
    for (let left = TRIES; ; left--) {
      this.#challenge ??= (await this.#ask("GET", "/debug/admin/challenge", {})).body.challenge;
      if (typeof this.#challenge !== "string") throw this.#reject();
      const signature = mac(this.token, "baton request", method, path, this.host, this.#challenge);
      const authorization = `Baton ${this.host} ${this.#challenge} ${signature}`;
      const response = await this.#ask(method, path, { authorization });
      if (response.proof !== mac(this.token, "baton response", signature)) throw this.#reject();
      if (response.status !== 401) return response;
      this.#challenge = null;
      if (left <= 1) throw new Unreachable("the server takes no signature");
    }
  }

  #reject() {
    this.#challenge = null;
    return new Unknown("the server has not proved that it knows the token");
  }

  async #ask(method, path, headers) {
    let response;
    try {
      response = await this.send(method, path, headers);
    } catch (error) {
      // Another process may answer next.
      this.#challenge = null;
      throw new Unreachable(String(error));
    }
    // A proxy's word, which has no proof: the server behind it is away.
    if (!response.proof && AWAY.includes(response.status)) {
      this.#challenge = null;
      throw new Unreachable(`answer ${response.status}`);
    }
    return { ...response, body: response.body ?? {} };
  }
}
