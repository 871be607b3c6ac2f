-- For wrk: no two requests are alike, so that nothing a server remembers of earlier ones helps it.
local number = 0

request = function()
  number = number + 1
  return wrk.format("GET", wrk.path .. "?n=" .. number, {
    ["Host"] = wrk.host,
    ["User-Agent"] = "vary/" .. number,
    ["X-Request-Id"] = string.format("%032x", number * 2654435761 % 4294967296),
    ["Cookie"] = "session=" .. number .. "; theme=dark",
  })
end
