"""The Python benchmark: prog.py N does N rounds and prints what it computed."""

import hashlib
import json
import re
import sys


def nbody(steps):
    bodies = [[float(i * 3), i * 0.5, 1.0 / (i + 1), 0.0, 0.1 * i, 0.0, 1.0 / (i + 1)]
              for i in range(5)]
    for _ in range(steps):
        for i, a in enumerate(bodies):
            for b in bodies[i + 1:]:
                dx, dy, dz = a[0] - b[0], a[1] - b[1], a[2] - b[2]
                mag = 0.001 / ((dx * dx + dy * dy + dz * dz + 0.01) ** 0.5) ** 3
                a[3] -= dx * b[6] * mag
                a[4] -= dy * b[6] * mag
                a[5] -= dz * b[6] * mag
                b[3] += dx * a[6] * mag
                b[4] += dy * a[6] * mag
                b[5] += dz * a[6] * mag
        for a in bodies:
            for k in range(3):
                a[k] += 0.001 * a[k + 3]
    return "%.9f" % sum(sum(b) for b in bodies)


class Task:
    """A cell of a small discrete-event simulation."""

    def __init__(self, name, period):
        self.name, self.period, self.due, self.runs = name, period, period, 0

    def run(self, now, log):
        self.runs += 1
        self.due = now + self.period
        log[self.name] = log.get(self.name, 0) + now % 7


def scheduler(turns):
    tasks, log = [Task("task%d" % i, 3 + i * 2) for i in range(20)], {}
    for now in range(turns):
        for t in tasks:
            if t.due <= now:
                t.run(now, log)
    return sum(log.values()) + sum(t.runs for t in tasks)


def text(lines):
    rows = [{"id": i, "name": "user%d" % (i * 7919 % 1000), "tags": ["a%d" % (i % 5), "b"],
             "score": i / 8} for i in range(lines)]
    blob = json.dumps(rows, sort_keys=True)
    back = json.loads(blob)
    found = re.findall(r'"name": "(user\d*7)"', blob)
    words = {}
    for w in re.split(r"\W+", blob):
        words[w] = words.get(w, 0) + 1
    top = sorted(words.items(), key=lambda kv: (-kv[1], kv[0]))[:10]
    return len(found), top, sum(r["score"] for r in back)


def big(bits):
    x, m = 3, (1 << bits) - 159
    for _ in range(200):
        x = x * x % m
    return hashlib.sha256(str(x).encode()).hexdigest()


def permutations(n):
    """fannkuch, without the library."""
    p, count, flips, best = list(range(n)), [0] * n, 0, 0
    i = 0
    while i < n:
        if count[i] < i:
            k = count[i] if i & 1 else 0
            p[k], p[i] = p[i], p[k]
            q, flips = p[:], 0
            while q[0]:
                q[:q[0] + 1] = q[q[0]::-1]
                flips += 1
            best = max(best, flips)
            count[i] += 1
            i = 0
        else:
            count[i] = 0
            i += 1
    return best


def main():
    for r in range(int(sys.argv[1])):
        print(r, nbody(600), scheduler(2000), text(400), big(2000 + r), permutations(7))


main()
