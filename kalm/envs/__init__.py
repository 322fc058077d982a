"""The worlds. Importing this registers their Gymnasium environments, without importing a simulator."""

import gymnasium as gym

gym.register(id="kalm/ClevrRobot-v0", entry_point="kalm.envs.clevr_robot.env:ClevrRobotEnv")
gym.register(id="kalm/MetaWorld-v0", entry_point="kalm.envs.metaworld.env:MetaWorldEnv")
