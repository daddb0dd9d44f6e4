-- What wrk sends: bodies that were made beforehand, each with distinctIds of its own, one after the other.
-- Read from the environment: BENCH_PATH, BENCH_TOKEN, BENCH_NOW_MS, BENCH_ROWS (0: the row is the body, as for /track),
-- BENCH_BODIES (how many different ones), BENCH_FIRST_ID (of their rows, less one), BENCH_ROW_BYTES (filling a row),
-- BENCH_DELAY_MS (mean pause of a connection).

local path = os.getenv("BENCH_PATH")
local rows = tonumber(os.getenv("BENCH_ROWS"))
local body_count = tonumber(os.getenv("BENCH_BODIES"))
local now_ms = tonumber(os.getenv("BENCH_NOW_MS"))
local delay_ms = tonumber(os.getenv("BENCH_DELAY_MS"))
local filling = string.rep("x", tonumber(os.getenv("BENCH_ROW_BYTES")))
local token = '{"token":"' .. os.getenv("BENCH_TOKEN") .. '",'
local headers = {
  ["content-type"] = "application/json",
  ["accept"] = "application/json",
  ["user-agent"] = "OursPrivacy/Python 2.1.0",
  ["x-stainless-lang"] = "python",
  ["x-stainless-package-version"] = "2.1.0",
}
local requests = {}
local at = 0

local function row(i)
  return string.format(
    '{"event":"Purchase","distinctId":"order-%012d","userId":"customer-%06d","email":"c%06d@example.com","time":%d,' ..
    '"eventProperties":{"sku":"A-%04d","price":%.2f,"quantity":%d,"currency":"EUR","note":"%s"}}',
    i, i % 1000000, i % 1000000, now_ms, i % 10000, (i % 9999) / 100, i % 9 + 1, filling)
end

function init(args)
  local id = tonumber(os.getenv("BENCH_FIRST_ID"))
  for body = 1, body_count do
    local made = {}
    for place = 1, math.max(rows, 1) do
      id = id + 1
      made[place] = row(id)
    end
    local text
    if rows == 0 then
      text = token .. made[1]:sub(2)
    else
      text = token .. '"events":[' .. table.concat(made, ",") .. "]}"
    end
    requests[body] = wrk.format("POST", path, headers, text)
  end
end

function request()
  at = at % body_count + 1
  return requests[at]
end

if delay_ms > 0 then
  function delay()
    return math.random(0, 2 * delay_ms)
  end
end

-- Machine-readable: requests, microseconds, bytes, errors, statuses of 400 and more, p50 and p99 in microseconds.
function done(summary, latency)
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d %d %d\n", summary.requests, summary.duration, summary.bytes, errors,
    summary.errors.status, latency:percentile(50), latency:percentile(99)))
end
