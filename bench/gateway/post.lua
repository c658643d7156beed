-- Ready-made requests of different lengths, in turn; the first argument is how long their prompt is, in bytes. wrk counts
-- the errors. The result: answered, errors, and the time of an answer in microseconds, p50 and p99.
local requests = {}
local turn = 0

function init(arguments)
  local bytes = tonumber(arguments[1])
  -- Large ones are few, since wrk keeps them in memory.
  for number = 1, bytes > 10000 and 2 or 40 do
    local content = string.rep("y", bytes + number)
    local body = '{"messages":[{"role":"user","content":"' .. content .. '"}],"max_tokens":16,"model":"model-00"}'
    requests[number] = wrk.format("POST", "/v1/chat/completions", { ["Content-Type"] = "application/json" }, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %.0f %.0f\n", summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
