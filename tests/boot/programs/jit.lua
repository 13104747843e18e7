-- Numbers, strings, tables, FFI structures, callbacks and coroutines, hot enough to be compiled.
local ffi, bit = require "ffi", require "bit"
local function sieve(n)
  local s, c = {}, 0
  for i = 2, n do s[i] = true end
  for i = 2, n do
    if s[i] then c = c + 1; for k = i * i, n, i do s[k] = false end end
  end
  return c
end
local function mandel(n)
  local count = 0
  for y = 0, n - 1 do
    for x = 0, n - 1 do
      local cr, ci, zr, zi, i = 2 * x / n - 1.5, 2 * y / n - 1, 0, 0, 0
      while i < 50 and zr * zr + zi * zi < 4 do
        zr, zi, i = zr * zr - zi * zi + cr, 2 * zr * zi + ci, i + 1
      end
      count = count + i
    end
  end
  return count
end
ffi.cdef [[
  typedef struct { double x, y; int32_t n; uint64_t h; } point;
  void qsort(void *base, size_t n, size_t size, int (*cmp)(const int *, const int *));
  double cos(double); int snprintf(char *, size_t, const char *, ...);
]]
local function structs(n)
  local p = ffi.new("point[?]", 100)
  for i = 0, n - 1 do
    local q = p[i % 100]
    q.x = q.x + i * 0.5; q.y = q.y - q.x * 1e-3; q.n = q.n + i
    q.h = (q.h * 1099511628211ULL + i) % 18446744073709551557ULL
  end
  local x, h = 0, 0ULL
  for i = 0, 99 do x = x + p[i].x + p[i].n; h = h * 31 + p[i].h end
  return string.format("%.3f %s", x, tostring(h))
end
local function hash(n)
  local h = 0x811c9dc5
  for i = 1, n do h = bit.tobit(bit.bxor(h, i % 256) * 403); h = bit.rol(h, 5) end
  return bit.tohex(h)
end
local function callbacks()
  local a = ffi.new("int[1000]")
  local x = 1
  for i = 0, 999 do x = (x * 16807) % 2147483647; a[i] = x % 100000 end
  local calls = 0
  local cb = ffi.cast("int (*)(const int *, const int *)", function(p, q) calls = calls + 1; return p[0] - q[0] end)
  ffi.C.qsort(a, 1000, 4, cb)
  cb:free()
  for i = 1, 999 do assert(a[i - 1] <= a[i]) end
  assert(calls > 5000)
  return a[0] .. "," .. a[999]
end
local function strings(n)
  local t = {}
  for i = 1, n do t[#t + 1] = ("%d:%x"):format(i, i * 7):upper():reverse() end
  local s, c = table.concat(t, ","), 0
  for w in s:gmatch("[^,]+") do c = c + #w * (tonumber(w:reverse():match("^(%d+)")) % 7) end
  return #s .. "," .. c
end
local function coroutines(n)
  local function gen(k) return coroutine.wrap(function() for i = 1, k do coroutine.yield(i) end end) end
  local s = 0
  for v in gen(n) do s = s + v end
  return s
end
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
local scale = tonumber(arg[1] or 1)
for round = 1, 2 * scale do
  jit.flush() -- compile all of it again
  print(sieve(200000), mandel(120), structs(300000), hash(1000000), callbacks(), strings(20000), coroutines(100000), fib(27))
end
-- Errors through compiled code
local ok, e = pcall(function() local t = {} for i = 1, 100 do if i == 90 then t = nil end t.x = i end end)
print(ok, (e:gsub("^.-:%d+: ", "")))
