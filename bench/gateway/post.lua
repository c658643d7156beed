-- Forty ready-made requests of about 1 KB and of different lengths, one model after the other; wrk counts the errors.
local requests = {}
local turn = 0

function init(arguments)
  local models = tonumber(arguments[1])
  for number = 0, models - 1 do
    local content = string.rep("y", 910 + number)
    local body = '{"messages":[{"role":"user","content":"' .. content .. '"}],"max_tokens":16,"model":"'
      .. string.format("model-%02d", number) .. '"}'
    requests[number + 1] = wrk.format("POST", "/v1/chat/completions", { ["Content-Type"] = "application/json" }, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d\n", summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
