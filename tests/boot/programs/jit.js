// Optimized and deoptimized code, typed arrays, BigInt, regular expressions, exceptions, garbage,
// WebAssembly with its traps by SIGSEGV, workers: prints what it computed.
'use strict';
const crypto = require('crypto');
const { Worker } = require('worker_threads');
const out = [];

function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
out.push(fib(27));

// Deoptimization: the types in a hot function change.
function add(a, b) { return a + b; }
let s = 0, t = '';
for (let i = 0; i < 200000; i++) s = add(s, i);
for (let i = 0; i < 1000; i++) t = add(t, i % 10);
for (let i = 0; i < 200000; i++) s = add(s, 0.5);
out.push(s, t.length, add(1n, 2n).toString());

const n = 96, a = new Float64Array(n * n), b = new Float64Array(n * n), c = new Float64Array(n * n);
for (let i = 0; i < n * n; i++) { a[i] = i % 13 - 6; b[i] = i % 7 - 3; }
for (let i = 0; i < n; i++)
    for (let k = 0; k < n; k++)
        for (let j = 0; j < n; j++) c[i * n + j] += a[i * n + k] * b[k * n + j];
out.push(c.reduce((x, y) => x + y * y, 0));

let h = 0x811c9dc5;
for (let i = 0; i < 2000000; i++) { h ^= i & 255; h = Math.imul(h, 16777619) >>> 0; }
out.push(h.toString(16));

let f = 1n;
for (let i = 1n; i <= 400n; i++) f *= i;
out.push(crypto.createHash('sha256').update(f.toString()).digest('hex').slice(0, 16));

const text = Array.from({ length: 20000 }, (_, i) => 'word' + i * 7919 % 1000).join(' ');
out.push((text.match(/\bword\d*7\b/g) || []).length, text.replace(/(\d)(\d)\b/g, '$2$1').length);

let caught = 0;
function thrower(i) { if (i % 3 === 0) throw new RangeError('x' + i); return i; }
for (let i = 0; i < 30000; i++) { try { thrower(i); } catch (e) { caught += e.message.length; } }
out.push(caught);

let list = null, length = 0;
for (let i = 0; i < 500000; i++) list = i % 1000 === 0 ? null : { next: list, i, s: 'k' + (i & 15) };
for (let p = list; p; p = p.next) length++;
out.push(length);

// WebAssembly: (i32 n) -> i64, the sum of the squares up to n; and an i32.load of any address.
const section = (id, ...body) => [id, body.length, ...body];
const body = (...code) => [code.length, ...code];
const module_ = () => new WebAssembly.Module(Uint8Array.from([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, 2, 0x60, 1, 0x7f, 1, 0x7e, 0x60, 1, 0x7f, 1, 0x7f),
    ...section(3, 2, 0, 1),
    ...section(5, 1, 0, 1),
    ...section(7, 2, 1, 0x73, 0, 0, 1, 0x6c, 0, 1),
    ...section(10, 2,
        ...body(1, 1, 0x7e, 0x03, 0x40, 0x20, 1, 0x20, 0, 0xad, 0x20, 0, 0xad, 0x7e, 0x7c, 0x21, 1,
            0x20, 0, 0x41, 1, 0x6b, 0x22, 0, 0x0d, 0, 0x0b, 0x20, 1, 0x0b),
        ...body(0, 0x20, 0, 0x28, 2, 0, 0x0b))]));
for (let i = 0; i < 20; i++) {
    const w = new WebAssembly.Instance(module_()).exports;
    let squares = 0n, traps = 0;
    for (let k = 0; k < 20; k++) squares += w.s(20000 + k);
    for (let k = 0; k < 50; k++) {
        try { w.l(k * 100000000 | 0); } catch (e) { traps += e instanceof WebAssembly.RuntimeError; }
    }
    if (i === 19) out.push(squares.toString(), traps, w.l(0));
}

// New code again and again
let made = 0;
for (let i = 0; i < 300; i++) {
    const g = new Function('x', `let r = 0; for (let i = 0; i < 300; i++) r = (r + x * ${i}) | 0; return r;`);
    made = (made + g(i)) | 0;
}
out.push(made);

const worker = new Worker(
    `const { parentPort, workerData } = require('worker_threads');
     const a = new Int32Array(workerData); let s = 0;
     for (let r = 0; r < 20; r++) for (let i = 0; i < 100000; i++) s = (s * 31 + i) | 0;
     Atomics.store(a, 0, s); Atomics.notify(a, 0); parentPort.postMessage(s);`,
    { eval: true, workerData: new SharedArrayBuffer(4) });
worker.on('message', (m) => { out.push(m); });
worker.on('exit', () => { console.log(out.join(' ')); });
