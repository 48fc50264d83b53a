"What an answer is worth: graders, statistics, policies, rewards"
