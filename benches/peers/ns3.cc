// The same short connections in ns-3: a client, a router, a server, one TCP connection a request at a constant rate. The
// client asks with 80 bytes, the server answers with 850, the client closes first and keeps TIME_WAIT. No IPVS, no
// conntrack, no NAT: ns-3 has none of them, so it does less than the others here.
//
// Written against ns-3.37, as Debian 12 packages it. Prints one line: connections that were answered, events, and the CPU
// seconds of the simulation alone (not of setting it up).

#include <cstdint>
#include <cstdio>
#include <ctime>
#include <string>

#include "ns3/core-module.h"
#include "ns3/internet-module.h"
#include "ns3/network-module.h"
#include "ns3/point-to-point-module.h"

using namespace ns3;

static const uint32_t kRequest = 80;
static const uint32_t kAnswer = 850;
static const uint16_t kPort = 80;

static uint64_t g_opened = 0, g_refused = 0, g_answered = 0;

// The server: answers once a whole request is there, and closes when the client does.

static void ServerReads(Ptr<Socket> socket) {
  uint32_t bytes = 0;
  while (Ptr<Packet> packet = socket->Recv()) {
    if (packet->GetSize() == 0) break;
    bytes += packet->GetSize();
  }
  if (bytes > 0) socket->Send(Create<Packet>(kAnswer));
}

static void ServerCloses(Ptr<Socket> socket) { socket->Close(); }

static void ServerAccepts(Ptr<Socket> socket, const Address&) {
  socket->SetRecvCallback(MakeCallback(&ServerReads));
  socket->SetCloseCallbacks(MakeCallback(&ServerCloses), MakeNullCallback<void, Ptr<Socket>>());
}

// The client: a socket a request.

static void ClientConnected(Ptr<Socket> socket) { socket->Send(Create<Packet>(kRequest)); }

static void ClientReads(Ptr<Socket> socket) {
  uint32_t bytes = 0;
  while (Ptr<Packet> packet = socket->Recv()) {
    if (packet->GetSize() == 0) break;
    bytes += packet->GetSize();
  }
  if (bytes >= kAnswer) {
    ++g_answered;
    socket->Close();
  }
}

static void Begin(Ptr<Node> client, InetSocketAddress server, Time gap, Time end) {
  Ptr<Socket> socket = Socket::CreateSocket(client, TcpSocketFactory::GetTypeId());
  socket->SetConnectCallback(MakeCallback(&ClientConnected), MakeNullCallback<void, Ptr<Socket>>());
  socket->SetRecvCallback(MakeCallback(&ClientReads));
  if (socket->Bind() == 0 && socket->Connect(server) == 0) {
    ++g_opened;
  } else {
    ++g_refused;
  }
  if (Simulator::Now() + gap < end) Simulator::Schedule(gap, &Begin, client, server, gap, end);
}

int main(int argc, char* argv[]) {
  double rate = 200, seconds = 60, time_wait = 60;
  CommandLine cmd(__FILE__);
  cmd.AddValue("rate", "connections a second", rate);
  cmd.AddValue("seconds", "how long connections are opened", seconds);
  cmd.AddValue("time-wait", "seconds of TIME_WAIT", time_wait);
  cmd.Parse(argc, argv);

  Config::SetDefault("ns3::TcpSocketBase::MaxSegLifetime", DoubleValue(time_wait / 2));
  // An Ethernet's; the default would cut the answer in two.
  Config::SetDefault("ns3::TcpSocket::SegmentSize", UintegerValue(1448));
  NodeContainer nodes;
  nodes.Create(3);  // client, router, server
  PointToPointHelper link;
  link.SetDeviceAttribute("DataRate", StringValue("10Gbps"));
  link.SetChannelAttribute("Delay", StringValue("100us"));
  NetDeviceContainer left = link.Install(nodes.Get(0), nodes.Get(1));
  NetDeviceContainer right = link.Install(nodes.Get(1), nodes.Get(2));
  InternetStackHelper stack;
  stack.Install(nodes);
  Ipv4AddressHelper addresses;
  addresses.SetBase("10.1.1.0", "255.255.255.0");
  addresses.Assign(left);
  addresses.SetBase("10.1.2.0", "255.255.255.0");
  Ipv4InterfaceContainer behind = addresses.Assign(right);
  Ipv4GlobalRoutingHelper::PopulateRoutingTables();

  Ptr<Socket> listener = Socket::CreateSocket(nodes.Get(2), TcpSocketFactory::GetTypeId());
  listener->Bind(InetSocketAddress(Ipv4Address::GetAny(), kPort));
  listener->Listen();
  listener->SetAcceptCallback(MakeNullCallback<bool, Ptr<Socket>, const Address&>(), MakeCallback(&ServerAccepts));

  InetSocketAddress server(behind.GetAddress(1), kPort);
  Time end = Seconds(seconds);
  Simulator::Schedule(Seconds(0), &Begin, nodes.Get(0), server, Seconds(1 / rate), end);
  Simulator::Stop(end + Seconds(1));
  const std::clock_t before = std::clock();
  Simulator::Run();
  const double cpu = double(std::clock() - before) / CLOCKS_PER_SEC;
  std::printf("answered %llu opened %llu no-port %llu events %llu cpu %.3f\n", (unsigned long long)g_answered,
              (unsigned long long)g_opened, (unsigned long long)g_refused,
              (unsigned long long)Simulator::GetEventCount(), cpu);
  Simulator::Destroy();
  return 0;
}
