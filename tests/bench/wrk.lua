-- For wrk: what is asked, and in the end one line of JSON with what came of it (tests/bench/load.py reads it).
--
--   wrk … -s wrk.lua URL -- METHOD BODY_BYTES HEADERS VARY
--
-- VARY = 1: no two requests are alike, so that nothing a server remembers of earlier ones helps it.

local number = 0

local function headers_of(count)
  local found = {}
  for each = 1, count do
    found["X-Header-" .. each] = string.rep("v", 8 + each)
  end
  return found
end

local function varied()
  number = number + 1
  local headers = {}
  for name, value in pairs(wrk.headers) do
    headers[name] = value
  end
  headers["User-Agent"] = "vary/" .. number
  headers["X-Request-Id"] = string.format("%032x", number * 2654435761 % 4294967296)
  headers["Cookie"] = "session=" .. number .. "; theme=dark"
  return wrk.format(nil, wrk.path .. "?n=" .. number, headers)
end

function init(arguments)
  wrk.method = arguments[1]
  if tonumber(arguments[2]) > 0 then
    wrk.body = string.rep("x", tonumber(arguments[2]))
    wrk.headers["Content-Type"] = "application/octet-stream"
  end
  for name, value in pairs(headers_of(tonumber(arguments[3]))) do
    wrk.headers[name] = value
  end
  if arguments[4] == "1" then
    request = varied
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f,'
      .. ' "errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout
  ))
end
